"""A model's embeddings and logits for a set of images, computed once for many uses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.models.backbone import features_and_logits


@dataclass(frozen=True)
class Features:
    """Embeddings that the head reads (n, d), logits (n, K) and labels y (n,)."""

    embedding: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)


def extract(model: nn.Module, samples: Samples, *, batch: int = 256) -> Features:
    """Compute the features of images, without gradients.

    Args:
        model: A ViT as `load_backbone` or `load_timm` gives it, in eval mode.
        samples: At least one image.
        batch: Images at a time.

    Raises:
        DataError: There are no images, or an embedding isn't finite.
    """
    if len(samples) == 0:
        raise DataError("expected at least one image to extract features of, found none")
    embeddings, logits = [], []
    with torch.no_grad():
        for i in range(0, len(samples), batch):
            embedding, answer = features_and_logits(model, samples.x[i : i + batch])
            embeddings.append(embedding)
            logits.append(answer)
    features = Features(torch.cat(embeddings), torch.cat(logits), samples.y)
    broken = int((~features.embedding.isfinite()).any(dim=1).sum())
    if broken:
        raise DataError(
            f"the model gives {broken} of {len(features)} images an embedding that isn't finite; "
            "its weights are broken"
        )
    return features


def rows(features: Features, chosen: Tensor) -> Features:
    """The rows that an index or a boolean mask selects."""
    return Features(features.embedding[chosen], features.logits[chosen], features.y[chosen])


def split(features: Features, *, forgotten: Tensor) -> tuple[Features, Features]:
    """The rows of the forgotten classes, and all other rows."""
    gone = torch.isin(features.y, forgotten)
    return rows(features, gone), rows(features, ~gone)


def draw_per_class(
    y: Tensor, *, count: int | None = None, share: float | None = None, generator: torch.Generator
) -> Tensor:
    """Draw rows of each class without replacement; returns them sorted.

    The draw depends only on the labels and the generator, so every model gets the same rows.

    Args:
        y: Labels (n,).
        count: Rows of each class; a smaller class gives all its rows.
        share: Instead of `count`: this share of each class, rounded, but at least one row.
        generator: Source of the draw.

    Raises:
        DataError: Both `count` and `share` were given, or neither.
    """
    if (count is None) == (share is None):
        raise DataError("expected either a count or a share of images per class")
    drawn = []
    for label in sorted(set(y.tolist())):
        own = (y == label).nonzero().flatten()
        order = torch.randperm(len(own), generator=generator)
        wanted = count if count is not None else max(1, round((share or 0.0) * len(own)))
        drawn.append(own[order[:wanted]])
    return torch.cat(drawn).sort().values if drawn else torch.empty(0, dtype=torch.int64)


def halves(features: Features) -> tuple[Features, Features]:
    """Split each class in two: every other sample, and the rest. A single sample is in both."""
    first = torch.zeros(len(features.y), dtype=torch.bool)
    alone = torch.zeros(len(features.y), dtype=torch.bool)
    for label in sorted(set(features.y.tolist())):
        own = torch.nonzero(features.y == label).flatten()
        first[own[1::2]] = True
        alone[own] = len(own) == 1
    return rows(features, first | alone), rows(features, ~first | alone)
