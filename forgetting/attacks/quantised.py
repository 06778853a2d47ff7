"""Does rounding the weights bring a class back?

Who serves a model in int8 or 4 bits rounds small changes away, and an erasure that lies in small
changes with them (2410.16454 found that for language models). Each weight matrix is rounded to
nearest, symmetrically, with one scale for each output channel.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.measure.accuracy import share_right
from forgetting.models.lite_hybrid import FrozenStem

BITS = (8, 4)


@dataclass(frozen=True)
class QuantisedPoint:
    """Plain Acc_f and Acc_r on test images with weights of `bits` bits."""

    bits: int
    acc_f: float
    acc_r: float


def rounded(weight: Tensor, *, bits: int) -> Tensor:
    """A weight (out, ...) on a grid of 2^bits - 1 values for each output channel."""
    levels = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / levels  # (out, 1)
    grid: Tensor = (rows / scale).round() * scale
    return grid.view_as(weight)


def quantised(model: nn.Module, *, bits: int) -> nn.Module:
    """A copy whose linears and convolutions, the head included, have rounded weights.

    A frozen stem keeps its own: no method changes it, and its outputs are shared.
    """
    found = copy.deepcopy(model)
    stem = {m for part in found.modules() if isinstance(part, FrozenStem) for m in part.modules()}
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module not in stem:
                module.weight.copy_(rounded(module.weight, bits=bits))
    return found


def attack_by_rounding(
    model: nn.Module, *, test: Samples, forgotten: Tensor, bits: tuple[int, ...]
) -> tuple[QuantisedPoint, ...]:
    """Ask the rounded models about the test images.

    Args:
        model: The model, in eval mode. It isn't changed.
        test: Test images of all classes.
        forgotten: Labels (k,).
        bits: Bits of a weight; each gives a point.
    """
    gone = torch.isin(test.y, forgotten)
    points = []
    for width in bits:
        small = quantised(model, bits=width)
        acc_f, acc_r = (
            share_right(small, test.x[part], test.y[part]).value for part in (gone, ~gone)
        )
        points.append(QuantisedPoint(width, acc_f, acc_r))
    return tuple(points)
