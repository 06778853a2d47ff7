"""Prototypical relearning: write the mean feature of a few images into a forgotten class's row.

    w_c <- alpha * |w| * p_c / |p_c| + (1 - alpha) * w_c,    |w| = mean norm of the retained rows

(*Unlearning's Blind Spots*, ICML 2026.) It needs no gradient, only one pass over k images of a
class.

- Cosine head: p_c is the mean of e / |e|.
- Linear head: it reads raw features, and all features have a part in common. A row that contains
  this part would win for every image. So p_c = mean(e) - mu, where mu is the mean of the retained
  features. The bias is set so that b + w mu of the new row is the mean of b + w mu over the
  retained rows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.errors import DataError
from forgetting.measure.accuracy import right
from forgetting.measure.features import Features, draw_per_class, rows, split
from forgetting.models.face_transformer import CosineHead


@dataclass(frozen=True)
class PrototypeConfig:
    """Images of each class, mixing weights, and draws. The mean over the draws is reported."""

    shots: int = 5
    alphas: tuple[float, ...] = (0.5, 1.0)
    draws: int = 5


@dataclass(frozen=True)
class PrototypePoint:
    """Means over the draws: recall of forgotten test images, and accuracy on retained ones."""

    alpha: float
    recall_f: float
    acc_r: float


def relearn_by_prototype(
    head: nn.Linear,
    *,
    train: Features,
    test: Features,
    forgotten: Tensor,
    generator: torch.Generator,
    config: PrototypeConfig = PrototypeConfig(),
) -> tuple[PrototypePoint, ...]:
    """Write prototypes into the forgotten rows of the head, for each alpha.

    Args:
        head: A plain or a cosine head. It isn't changed. At alpha = 1 its forgotten rows don't
            matter.
        train: Features of all classes. The prototypes are those of the forgotten ones.
        test: Test features of all classes.
        forgotten: Labels (k,).
        generator: Source of the draws.
        config: Shots, alphas and draws.

    Raises:
        DataError: There are no training images of forgotten or of retained classes.
    """
    forget, retain = split(train, forgotten=forgotten)
    if len(forget) == 0 or len(retain) == 0:
        raise DataError(
            f"prototypical relearning needs images of forgotten and of retained classes, found "
            f"{len(forget)} and {len(retain)}"
        )
    centre = _centre(head, retain)
    parts = split(test, forgotten=forgotten)
    found: dict[float, list[tuple[float, float]]] = {alpha: [] for alpha in config.alphas}
    for _ in range(config.draws):
        chosen = draw_per_class(forget.y, count=config.shots, generator=generator)
        moved = _coordinates(head, forget.embedding[chosen], centre=centre)
        prototypes = class_means(moved, forget.y[chosen])
        for alpha in config.alphas:
            written = _written(head, prototypes, centre=centre, forgotten=forgotten, alpha=alpha)
            with torch.no_grad():
                shares = [right(written(part.embedding), part.y).value for part in parts]
            found[alpha].append((shares[0], shares[1]))
    return tuple(
        PrototypePoint(alpha, _mean([f for f, _ in pairs]), _mean([r for _, r in pairs]))
        for alpha, pairs in found.items()
    )


def written_head(head: nn.Linear, *, shown: Features, retained: Features) -> nn.Linear:
    """A copy of the head with the prototypes of the shown classes in their rows (alpha = 1).

    Args:
        head: A plain or a cosine head.
        shown: Features of the images that the prototypes are made of.
        retained: Features of other classes. A plain head's rows are centred on their mean.
    """
    centre = _centre(head, retained)
    prototypes = class_means(_coordinates(head, shown.embedding, centre=centre), shown.y)
    return _written(head, prototypes, centre=centre, forgotten=prototypes[0], alpha=1.0)


def nearest_mean(
    train: Features,
    test: Features,
    *,
    forgotten: Tensor,
    generator: torch.Generator,
    shots: int = 5,
    draws: int = 5,
) -> PrototypePoint:
    """The same attack without a head: the answer is the nearest of all classes' k-shot means.

    Nearest by cosine. Features are centred on the mean of all means. The point has alpha = 1.
    """
    parts = split(test, forgotten=forgotten)
    shares: list[tuple[float, float]] = []
    for _ in range(draws):
        drawn = rows(train, draw_per_class(train.y, count=shots, generator=generator))
        labels, means = class_means(drawn.embedding, drawn.y)
        centre = means.mean(dim=0)
        means = F.normalize(means - centre, dim=1)
        recall, accuracy = (
            # (n, d) @ (d, K) -> (n, K); the norm of e doesn't move the arg max
            float((labels[((p.embedding - centre) @ means.T).argmax(dim=1)] == p.y).float().mean())
            for p in parts
        )
        shares.append((recall, accuracy))
    return PrototypePoint(1.0, _mean([f for f, _ in shares]), _mean([r for _, r in shares]))


def class_means(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The labels that occur (K',), sorted, and the mean of each one's rows (K', d)."""
    labels, place = torch.unique(y, return_inverse=True)
    sums = x.new_zeros(len(labels), x.shape[1]).index_add_(0, place, x)
    return labels, sums / place.bincount()[:, None]


def _centre(head: nn.Linear, retained: Features) -> Tensor:
    if isinstance(head, CosineHead):
        return torch.zeros_like(head.weight[0])
    return retained.embedding.mean(dim=0)


def _coordinates(head: nn.Linear, embedding: Tensor, *, centre: Tensor) -> Tensor:
    """The features to average. A cosine head has no bias, so they can't be centred for it."""
    return F.normalize(embedding, dim=1) if isinstance(head, CosineHead) else embedding - centre


def _written(
    head: nn.Linear,
    prototypes: tuple[Tensor, Tensor],
    *,
    centre: Tensor,
    forgotten: Tensor,
    alpha: float,
) -> nn.Linear:
    """A copy of the head with the prototypes (labels (K',), means (K', d)) in their rows."""
    labels, means = prototypes
    written = copy.deepcopy(head)
    kept = torch.ones(head.out_features, dtype=torch.bool)
    kept[forgotten] = False
    # A cosine head reads only directions, so its old rows first get the same norm.
    old = F.normalize(head.weight, dim=1) if isinstance(head, CosineHead) else head.weight
    norm = old[kept].norm(dim=1).mean()
    bias: Tensor | None = head.bias
    with torch.no_grad():
        new = norm * F.normalize(means, dim=1)
        written.weight[labels] = alpha * new + (1 - alpha) * old[labels]
        if bias is not None:
            typical = (bias[kept] + old[kept] @ centre).mean()  # (K', d) @ (d,) -> (K',)
            written.bias[labels] = typical - written.weight[labels] @ centre
    return written


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
