"""Engines: what runs the forward pass. All answer with the same numbers for the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

Forward = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) float32 -> logits (B, K) float32, before any mask."""


class Engine(Protocol):
    def build(self, weights: Mapping[str, Tensor]) -> Forward:
        """A forward pass of the backbone with `weights` in place of the named linears' own.

        `weights` maps module paths to merged weights (out, in). What is built is independent of
        every other: nothing that already serves changes.
        """
        ...
