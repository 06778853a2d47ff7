"""BentoML: `bentoml serve benchmarks.peers.bento:Classifier`. Raw JPEG bodies, a process a core."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import torch
from PIL.Image import Image

from benchmarks.peers.model import Model


@bentoml.service(workers=int(os.environ.get("BENCH_WORKERS", "2")), metrics={"enabled": False})
class Classifier:
    def __init__(self) -> None:
        self._model = Model.of_environment()

    @bentoml.api(route="/predict")
    def predict(self, image: Image, /) -> dict[str, Any]:
        pixels = self._model.transform(image)
        return self._model.answer(self._model.forward(torch.stack([pixels]))[0])
