"""The reference engine: eager PyTorch, weights shared between all forwards but the changed ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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

    def build(self, weights: Mapping[str, Tensor]) -> TorchForward:
        """See `Engine.build`. Costs the memory of `weights` and an empty module skeleton."""
        # deepcopy takes what the memo holds as already copied: every tensor stays shared.
        tensors = itertools.chain(self._model.parameters(), self._model.buffers())
        model = copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors})
        for path, weight in weights.items():
            model.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
        return TorchForward(model)
