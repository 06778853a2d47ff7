"""Engines run the forward pass in a replica. All give the same outputs for the same weights."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from serving.errors import ServingError


class Forward(Protocol):
    """One release's forward pass of images (B, C, H, W) float32. Thread-safe."""

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (B, K) float32, before any mask."""
        ...

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, d) that the head reads, after all weights and the feature edit, and the
        logits (B, K), both float32, from the same pass."""
        ...


class EngineError(ServingError):
    """An engine can't run this backbone on this machine; the message says why and what to do."""


class Engine(Protocol):
    """One backbone on one kind of runtime."""

    def build(self, state: EffectiveState) -> Forward:
        """A forward pass of the backbone with the merged weights and the feature edit of `state`.

        Building changes no other forward pass. It takes the memory of `state`; everything else is
        shared.

        Raises `TargetError` when the backbone has no place for the edit.
        """
        ...
