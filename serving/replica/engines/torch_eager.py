"""The reference engine: eager PyTorch. Releases share all weights that they don't change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.adapter.stack import EffectiveState, overlaid
from forgetting.models.backbone import features_and_logits
from serving.replica.engines import EngineError


@dataclass(frozen=True)
class TorchForward:
    """The forward pass of one release."""

    model: nn.Module
    device: torch.device
    bfloat16: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K) float32, on the CPU."""
        kind = self.device.type
        with (
            torch.inference_mode(),
            torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bfloat16),
        ):
            logits: Tensor = self.model(images.to(self.device, non_blocking=True))
            return logits.float().cpu()

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> features (B, d) and logits (B, K), float32, on the CPU."""
        kind = self.device.type
        with (
            torch.inference_mode(),
            torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bfloat16),
        ):
            here = images.to(self.device, non_blocking=True)
            features, logits = features_and_logits(self.model, here)
            return features.float().cpu(), logits.float().cpu()


class TorchEngine:
    def __init__(self, model: nn.Module, *, device: str = "cpu", bfloat16: bool = False) -> None:
        """
        Args:
            model: The bare backbone, on the CPU. It is copied for another device.
            device: `cpu` or `cuda`.
            bfloat16: Compute matrix products in bfloat16: faster on a GPU, but the logits no longer
                equal the reference to 1e-4.

        Raises:
            EngineError: There is no such device here.
        """
        self._device = open_device(device)
        self._bfloat16 = bfloat16
        self._model = on_device(model, self._device)

    def build(self, state: EffectiveState) -> TorchForward:
        """See `Engine.build`. Costs the memory of `state` and little more."""
        return TorchForward(overlaid(self._model, state), self._device, self._bfloat16)


def open_device(name: str) -> torch.device:
    """Raises `EngineError` when there is no such device here."""
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            'engine.device is "cuda", but PyTorch sees no GPU here: set it to "cpu", or give the '
            "replicas a GPU (engine.gpus)"
        )
    return torch.device(name)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` itself for the CPU; a copy for another device."""
    # `to` moves parameters in place, so without a deep copy it would move those of `model`.
    return model if device.type == "cpu" else copy.deepcopy(model).to(device)
