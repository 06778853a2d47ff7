"""The golden image: one fixed image, and 16 figures of what a model answers to it.

Training writes the figures into the report. A server computes them again after it has built the
model, and so knows that it serves what was measured. Each figure is a sum of all logits under
random signs: it shows a change of any logit, and no class can be read from it. Image and signs come
from SHAKE-256, so they are the same on every machine and with every library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-3
"""For float32. Engines on one machine agree to 1e-4, those of two machines a little less."""
_SUMS = 16


def golden_image(input_size: tuple[int, int, int]) -> Tensor:
    """Noise (1, C, H, W) in [-2, 2), as if it were pre-processed."""
    channels, height, width = input_size
    noise = _bytes("image", channels * height * width).astype(np.float32) / 64 - 2
    return torch.from_numpy(noise.reshape(1, channels, height, width))


def golden_figures(logits: Tensor) -> tuple[float, ...]:
    """16 sums of the golden image's logits (1, K) under random signs, divided by sqrt(K)."""
    classes = logits.shape[-1]
    signs = (_bytes("signs", _SUMS * classes) & 1).astype(np.float64) * 2 - 1
    # (16, K) @ (K,) -> (16,)
    sums = torch.from_numpy(signs.reshape(_SUMS, classes)) @ logits.detach().double().cpu()[0]
    return tuple(round(value, 5) for value in (sums / classes**0.5).tolist())


def golden_error(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest difference, divided by the largest expected figure if that is above 1.

    Infinite if a figure isn't a number, or if there aren't as many as expected.
    """
    if len(found) != len(expected) or not np.isfinite([*found, *expected]).all():
        return float("inf")
    scale = max(1.0, *(abs(value) for value in expected))
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale


def _bytes(purpose: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    stream = hashlib.shake_256(f"lethe golden {purpose}".encode()).digest(count)
    return np.frombuffer(stream, dtype=np.uint8)
