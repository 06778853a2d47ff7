"""Images of something else, with which a model's behaviour is held in place without retain images.

SCAR takes ten thousand images of another data set. Here there are two sources that need no data:
random crops of two photographs that scikit-learn ships (a temple and a flower), and forget images
cut into tiles that are shuffled, which keeps their texture and leaves no object. That crops of few
photographs are enough to distil a classifier was shown by Asano and Saeed (ICLR 2023). Both are a
poorer substitute than the thousands of images of the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 32
"""Side of the smallest crop, in pixels of the photograph."""
TILES = 4
"""Tiles along each side of a shuffled image."""


def photographs() -> tuple[Tensor, ...]:
    """The photographs that scikit-learn ships, each (3, 427, 640) in 0..1."""
    from sklearn.datasets import load_sample_images

    return tuple(
        torch.tensor(image, dtype=torch.float32).permute(2, 0, 1) / 255
        for image in load_sample_images().images
    )


def crops(count: int, *, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Random square crops of the photographs, half of them mirrored.

    Args:
        count: How many.
        shape: Channels, height and width. Other than three channels hold the mean of the colours.
        generator: Source of all randomness.

    Returns:
        Images (count, c, h, w) in 0..1.
    """
    channels, height, width = shape
    photos = photographs()
    found = []
    for which, size, left, top, mirror in torch.rand(count, 5, generator=generator).tolist():
        photo = photos[int(which * len(photos))]
        most = min(photo.shape[1:])
        side = SMALLEST + int(size * (most - SMALLEST))
        x, y = (int(at * (n - side)) for at, n in ((left, photo.shape[2]), (top, photo.shape[1])))
        crop = photo[:, y : y + side, x : x + side]
        crop = crop.flip(2) if mirror < 0.5 else crop
        found.append(F.interpolate(crop[None], (height, width), mode="bilinear", antialias=True))
    images = torch.cat(found)  # (count, 3, h, w)
    return images if channels == 3 else images.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)


def shuffled(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) cut into tiles in a random order. What doesn't divide stays."""
    n, c, h, w = x.shape
    th, tw = h // TILES, w // TILES
    if th == 0 or tw == 0:
        return x.clone()
    inner = x[:, :, : th * TILES, : tw * TILES].reshape(n, c, TILES, th, TILES, tw)
    tiles = inner.permute(0, 2, 4, 1, 3, 5).reshape(n, TILES * TILES, c, th, tw)
    order = torch.rand(n, TILES * TILES, generator=generator, device=generator.device).argsort(1)
    moved = tiles[torch.arange(n, device=x.device)[:, None], order.to(x.device)]
    back = moved.reshape(n, TILES, TILES, c, th, tw).permute(0, 3, 1, 4, 2, 5)
    out = x.clone()
    out[:, :, : th * TILES, : tw * TILES] = back.reshape(n, c, th * TILES, tw * TILES)
    return out


def surrogates(x: Tensor, *, count: int, own: float, generator: torch.Generator) -> Tensor:
    """Images that show none of the classes, as the model expects its input.

    Args:
        x: The forget images (n, c, h, w). The crops get their mean and spread in each channel.
        count: How many.
        own: Share (0..1) that are shuffled forget images; the others are crops of photographs.
        generator: Source of all randomness, on the CPU.

    Returns:
        Images (count, c, h, w).
    """
    from_x = round(own * count)
    rows = torch.randint(len(x), (from_x,), generator=generator, device=generator.device)
    parts = [shuffled(x[rows.to(x.device)], generator=generator)]
    if count > from_x:
        c, h, w = x.shape[1:]
        images = crops(count - from_x, shape=(c, h, w), generator=generator).to(x)
        mean, std = _moments(images)
        wanted_mean, wanted_std = _moments(x)
        parts.append((images - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean)
    return torch.cat(parts)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (1, c, 1, 1)."""
    axes = (0, 2, 3)
    return x.mean(dim=axes, keepdim=True), x.std(dim=axes, keepdim=True)
