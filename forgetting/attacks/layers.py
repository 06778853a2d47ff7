"""Where a class still lives: a probe and the nearest neighbour at the output of every block.

The head and the last map before it are the least of a network. A class that is gone there and
plain to see one block below has been hidden, not forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.attacks.probe import fit
from forgetting.data.samples import Samples
from forgetting.measure.features import draw_per_class
from forgetting.models.prefix import PIXELS, advance, lowest_cut, outputs_from


@dataclass(frozen=True)
class LayerConfig:
    """Images of each class for the probe, its penalty, and the most iterations of its fit."""

    shots: int = 20
    penalty: float = 1.0
    iterations: int = 30


@dataclass(frozen=True)
class LayerPoint:
    """Recall of forgotten test images at one depth.

    Attributes:
        depth: Number of blocks below; None for the feature that the head reads.
        probe: By a fresh linear head.
        neighbour: By the nearest training image of any class (cosine, centred).
    """

    depth: int | None
    probe: float
    neighbour: float


def layers(
    model: nn.Module,
    *,
    train: Samples,
    test: Samples,
    forgotten: Tensor,
    generator: torch.Generator,
    config: LayerConfig = LayerConfig(),
) -> tuple[LayerPoint, ...]:
    """Read the forgotten classes at every block's output, bottom to top, and at the feature.

    A model that can't be cut between its blocks has only the feature.

    Args:
        model: A ViT as `load_backbone` gives it, in eval mode. It isn't changed.
        train: Training images of all classes.
        test: Test images. Only those of the forgotten classes are used.
        forgotten: Labels (k,).
        generator: Source of the draw, which is the same at all depths.
        config: Hyper-parameters.
    """
    asked = torch.isin(test.y, forgotten)
    chosen = draw_per_class(train.y, count=config.shots, generator=generator)
    shown, y = read_outs(model, train.x), train.y
    read, labels = read_outs(model, test.x[asked]), test.y[asked]
    points = []
    for i, (inside, outside) in enumerate(zip(shown, read, strict=True)):
        head = fit(inside[chosen], y[chosen], penalty=config.penalty, steps=config.iterations)
        probed = float((head(outside).argmax(dim=1) == labels).float().mean())
        centre = inside.mean(dim=0)
        own, other = (F.normalize(part - centre, dim=1) for part in (outside, inside))
        nearest = y[(own @ other.T).argmax(dim=1)]  # (n, dim) @ (dim, m) -> (n, m)
        depth = i + 1 if i + 1 < len(shown) else None
        points.append(LayerPoint(depth, probed, float((nearest == labels).float().mean())))
    return tuple(points)


def read_outs(model: nn.Module, x: Tensor, *, batch: int = 256) -> tuple[Tensor, ...]:
    """The read-out of every block and the feature, (n, dim) each, of images x, bottom to top."""
    cut = lowest_cut(model)
    parts = []
    with torch.no_grad():
        for i in range(0, len(x), batch):
            tokens = advance(model, x[i : i + batch], start=PIXELS, stop=cut)
            outputs = outputs_from(model, tokens, cut=cut)
            parts.append((*outputs.blocks, outputs.embedding))
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))
