"""LitServe: `python lit.py PORT WORKERS SIZE WAIT_S`. It takes JSON with base64, not raw bodies."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import torch
from torch import Tensor

from benchmarks.peers.model import Model


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._model = Model.of_environment()

    def decode_request(self, request: dict[str, str]) -> Tensor:
        return self._model.read(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def predict(self, x: Tensor) -> Tensor:
        return self._model.forward(x)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, Any]:
        return self._model.answer(output)


if __name__ == "__main__":
    port, workers, size, wait = sys.argv[1:]
    api = Api(max_batch_size=int(size), batch_timeout=float(wait))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers))
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
