"""The golden image: a fixed one, and in few numbers what a model makes of it.

Whoever trains writes the numbers into the report; whoever serves compares, after a build, and so
knows that it computes what was measured. They are 16 random sums of the logits, so that no change
of any logit goes unseen, however many classes there are, and no class can be read from them.
Image and signs come from SHAKE-256: the same on every machine and for every version of a library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-3
"""For float32: engines agree to 1e-4, machines a little less."""
_SUMS = 16


def golden_image(input_size: tuple[int, int, int]) -> Tensor:
    """Noise (1, C, H, W) in [-2, 2), as if it were pre-processed."""
    channels, height, width = input_size
    noise = _bytes("image", channels * height * width).astype(np.float32) / 64 - 2
    return torch.from_numpy(noise.reshape(1, channels, height, width))


def golden_figures(logits: Tensor) -> tuple[float, ...]:
    """16 sums of the golden image's logits (1, K) under random signs, over the root of K."""
    classes = logits.shape[-1]
    signs = (_bytes("signs", _SUMS * classes) & 1).astype(np.float64) * 2 - 1
    # (16, K) @ (K,) -> (16,)
    sums = torch.from_numpy(signs.reshape(_SUMS, classes)) @ logits.detach().double().cpu()[0]
    return tuple(round(value, 5) for value in (sums / classes**0.5).tolist())


def golden_error(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, in units of the largest figure expected where that is above 1.

    Infinite where one isn't a number, or their numbers differ.
    """
    if len(found) != len(expected) or not np.isfinite([*found, *expected]).all():
        return float("inf")
    scale = max(1.0, *(abs(value) for value in expected))
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale


def _bytes(purpose: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    stream = hashlib.shake_256(f"lethe golden {purpose}".encode()).digest(count)
    return np.frombuffer(stream, dtype=np.uint8)
