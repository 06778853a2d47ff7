"""A plain Ray Serve deployment that does all its work in the event loop, without threads."""

from __future__ import annotations

from typing import Any

import torch
from ray import serve
from starlette.requests import Request
from torch import Tensor

from benchmarks.peers.model import Model


class Bare:
    def __init__(self, folder: str, engine: str, size: int, wait_ms: float) -> None:
        self._model = Model(folder, engine)
        self._classify.set_max_batch_size(size)
        self._classify.set_batch_wait_timeout_s(wait_ms / 1000)

    async def __call__(self, request: Request) -> dict[str, Any]:
        image = self._model.read(await request.body())
        return self._model.answer(await self._classify(image))

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.003)
    async def _classify(self, images: list[Tensor]) -> list[Tensor]:
        return list(self._model.forward(torch.stack(images)))  # b x (C, H, W) -> b x (K,)


def bare(folder: str, engine: str, *, replicas: int, size: int, wait_ms: float) -> Any:
    deployment = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=128,
        ray_actor_options={"num_cpus": 0.1},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(Bare)
    return deployment.bind(folder, engine, size, wait_ms)
