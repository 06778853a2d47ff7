"""Engines run the forward pass in a replica. All give the same logits for the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from serving.errors import ServingError

Forward = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) float32 -> logits (B, K) float32, before any mask. Thread-safe."""


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
