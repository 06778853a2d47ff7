"""The model of every server in the comparison: Pillow's decoding, timm's pre-processing and the
engine's forward pass."""

from __future__ import annotations

import io
import os
from pathlib import Path

import timm.data
import torch
from PIL import Image
from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from forgetting.models.backbone import load_backbone
from serving.replica.engines import Forward
from serving.replica.engines.onnx_runtime import OnnxEngine
from serving.replica.engines.torch_eager import TorchEngine

TOP = 5


class Model:
    """The bare backbone in a folder, on one thread."""

    def __init__(self, folder: str | Path, engine: str) -> None:
        torch.set_num_threads(1)
        backbone = load_backbone(folder)
        self.classes = backbone.spec.classes
        wanted = backbone.spec.preprocess
        self.size = wanted.input_size
        self.transform = timm.data.create_transform(
            input_size=wanted.input_size, mean=wanted.mean, std=wanted.std, crop_pct=wanted.crop_pct
        )
        self.forward: Forward = (
            OnnxEngine(backbone) if engine == "onnxruntime" else TorchEngine(backbone.model)
        ).build(EffectiveState())

    @classmethod
    def of_environment(cls) -> Model:
        """The model that the benchmark names in the environment of servers that it starts."""
        return cls(os.environ["BENCH_BACKBONE"], os.environ["BENCH_ENGINE"])

    def read(self, data: bytes) -> Tensor:
        image = Image.open(io.BytesIO(data))
        pixels: Tensor = self.transform(image)
        return pixels

    def answer(self, logits: Tensor) -> dict[str, object]:
        """The answer for one image, from its logits (K,)."""
        shares, indices = logits.softmax(-1).topk(TOP)
        pairs = zip(shares.tolist(), indices.tolist(), strict=True)
        return {"predictions": [{"label": self.classes[i], "probability": p} for p, i in pairs]}
