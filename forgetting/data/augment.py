"""Per-sample rotation, scale, shift, flip and contrast of a whole batch of tensors at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges that each sample draws from, uniformly.

    Attributes:
        rotation: Degrees, to either side.
        scale: Relative change of size, to either side.
        shift: Share of the image's width and height, to either side.
        contrast: Relative change of the deviation from the image's mean, to either side.
        brightness: Offset in units of the normalised input, to either side.
        flip: Mirror half of the images left to right (wrong for characters).
    """

    rotation: float = 12.0
    scale: float = 0.12
    shift: float = 0.08
    contrast: float = 0.2
    brightness: float = 0.1
    flip: bool = False


def augmented(x: Tensor, augmentation: Augmentation, *, generator: torch.Generator) -> Tensor:
    """A randomly transformed copy of each image.

    Args:
        x: Normalised images (n, c, h, w).
        augmentation: The ranges.
        generator: Source of all randomness.
    """
    n, _, height, width = x.shape
    u = torch.rand(n, 7, generator=generator) * 2 - 1  # (n, 7) in -1..1
    angle = u[:, 0] * math.radians(augmentation.rotation)
    zoom = 1 / (1 + u[:, 1] * augmentation.scale)
    mirror = torch.where(u[:, 6] < 0, -1.0, 1.0) if augmentation.flip else torch.ones(n)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    ratio = height / width
    theta = torch.empty(n, 2, 3)  # output (x, y, 1) -> input (x, y), both in -1..1
    theta[:, 0, 0], theta[:, 0, 1] = cos * mirror, -sin * ratio
    theta[:, 1, 0], theta[:, 1, 1] = sin / ratio * mirror, cos
    theta[:, :, 2] = u[:, 2:4] * (2 * augmentation.shift)
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)  # (n, h, w, 2)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gain = (1 + u[:, 4] * augmentation.contrast)[:, None, None, None]
    offset = (u[:, 5] * augmentation.brightness)[:, None, None, None]
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    return (moved - mean) * gain + mean + offset
