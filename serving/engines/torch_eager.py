"""The reference engine: eager PyTorch, weights shared between all forwards but the changed ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from serving.engines import Forward


class TorchEngine:
    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def build(self, weights: Mapping[str, Tensor]) -> Forward:
        """See `Engine.build`. Costs the memory of `weights` and an empty module skeleton."""
        # deepcopy takes what the memo holds as already copied: every tensor stays shared.
        tensors = itertools.chain(self._model.parameters(), self._model.buffers())
        model = copy.deepcopy(self._model, {id(tensor): tensor for tensor in tensors})
        for path, weight in weights.items():
            linear = model.get_submodule(path)
            linear.weight = nn.Parameter(weight, requires_grad=False)

        @torch.inference_mode()
        def forward(images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return logits.float()

        return forward
