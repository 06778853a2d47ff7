"""What the closed form needs to know about features: class means and one covariance.

The statistics of the retained classes are computed once per backbone and kept, so that no later
task needs a retained image. Two sets of statistics can be merged exactly, and an edit of the
feature can be applied to them exactly. A class mean is a prototype of its class. For a person that
is personal data, so `without` takes it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.erasure.edit import FeatureEdit
from forgetting.errors import DataError
from forgetting.models.backbone import features_and_logits


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Statistics of features e (n, d) with labels.

    Attributes:
        labels: The c classes, ascending.
        counts: Images of each class (c,), int64.
        means: Mean feature of each class (c, d), float64.
        within: Covariance about the class means, pooled over all images seen (d, d), float64.
        images: Number of images seen. After `without` it is more than the sum of `counts`.
    """

    labels: tuple[int, ...]
    counts: Tensor = field(repr=False)
    means: Tensor = field(repr=False)
    within: Tensor = field(repr=False)
    images: int

    @property
    def width(self) -> int:
        """d."""
        return int(self.means.shape[1])

    @property
    def mean(self) -> Tensor:
        """Mean of the class means (d,): every class has the same weight."""
        return self.means.mean(dim=0)


def statistics_of(embedding: Tensor, y: Tensor) -> FeatureStatistics:
    """Statistics of features (n, d) with labels (n,).

    Raises:
        DataError: There are no features, there aren't as many as labels, or some aren't finite.
    """
    if embedding.ndim != 2 or len(embedding) != len(y):
        raise DataError(
            f"expected features (n, d) and labels (n,), found {tuple(embedding.shape)} and "
            f"{tuple(y.shape)}"
        )
    if len(y) == 0:
        raise DataError("no images: expected at least one to take statistics of")
    e = embedding.detach().double().cpu()
    broken = int((~e.isfinite()).any(dim=1).sum())
    if broken:
        raise DataError(f"features of {broken} of {len(e)} images are not finite")
    labels, place, counts = torch.unique(y.cpu(), return_inverse=True, return_counts=True)
    sums = torch.zeros(len(labels), e.shape[1], dtype=torch.float64).index_add_(0, place, e)
    means = sums / counts[:, None]
    spread = e - means[place]
    return FeatureStatistics(
        labels=tuple(labels.tolist()),
        counts=counts,
        means=means,
        within=spread.T @ spread / len(e),  # (d, n) @ (n, d) -> (d, d)
        images=len(e),
    )


def feature_statistics(
    model: nn.Module, samples: Samples, *, batch: int = 256
) -> FeatureStatistics:
    """Statistics of the features that the model's head reads.

    Raises:
        DataError: See `statistics_of`.
    """
    parts = []
    with torch.inference_mode():
        for i in range(0, len(samples), batch):
            parts.append(features_and_logits(model, samples.x[i : i + batch])[0])
    return statistics_of(torch.cat(parts) if parts else torch.empty(0, 0), samples.y)


def merged(first: FeatureStatistics, second: FeatureStatistics) -> FeatureStatistics:
    """Statistics of both sets of images together, as if computed from all images at once.

    Raises:
        DataError: The features differ in width.
    """
    if first.width != second.width:
        raise DataError(f"features of width {first.width} and {second.width} can't be merged")
    labels = tuple(sorted({*first.labels, *second.labels}))
    counts = torch.zeros(len(labels), dtype=torch.int64)
    sums = torch.zeros(len(labels), first.width, dtype=torch.float64)
    scatter = first.images * first.within + second.images * second.within
    for part in (first, second):
        place = torch.tensor([labels.index(label) for label in part.labels])
        counts.index_add_(0, place, part.counts)
        sums.index_add_(0, place, part.counts[:, None] * part.means)
    means = sums / counts[:, None]
    for part in (first, second):  # the mean of a class in both has moved
        place = torch.tensor([labels.index(label) for label in part.labels])
        moved = part.means - means[place]
        scatter = scatter + (part.counts[:, None] * moved).T @ moved  # (d, c) @ (c, d) -> (d, d)
    images = first.images + second.images
    return FeatureStatistics(labels, counts, means, scatter / images, images)


def without(statistics: FeatureStatistics, labels: Iterable[int]) -> FeatureStatistics:
    """Take out the means of some classes. The pooled covariance stays: it names no class.

    Raises:
        DataError: No class would be left.
    """
    gone = set(labels)
    left = [i for i, label in enumerate(statistics.labels) if label not in gone]
    if not left:
        raise DataError("no class would be left in the feature statistics")
    return FeatureStatistics(
        labels=tuple(statistics.labels[i] for i in left),
        counts=statistics.counts[left],
        means=statistics.means[left],
        within=statistics.within,
        images=statistics.images,
    )


def edited(statistics: FeatureStatistics, edit: FeatureEdit) -> FeatureStatistics:
    """Statistics of the features after an edit e' = M e + m. This needs no image."""
    matrix = edit.matrix.double().cpu()
    return FeatureStatistics(
        labels=statistics.labels,
        counts=statistics.counts,
        means=statistics.means @ matrix.T + edit.offset.double().cpu(),  # (c, d) @ (d, d)
        within=matrix @ statistics.within @ matrix.T,
        images=statistics.images,
    )
