"""The reference engine: eager PyTorch, weights shared between all forwards but the changed ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.stack import EffectiveState, install, shared_copy


@dataclass(frozen=True)
class TorchForward:
    """The forward pass of one release."""

    model: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K) float32."""
        with torch.inference_mode():
            logits: Tensor = self.model(images)
            return logits.float()


class TorchEngine:
    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def build(self, state: EffectiveState) -> TorchForward:
        """See `Engine.build`. Costs the memory of `state` and an empty module skeleton."""
        model = shared_copy(self._model)
        install(model, state)
        return TorchForward(model)
