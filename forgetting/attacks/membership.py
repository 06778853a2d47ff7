"""Can one tell from the outputs alone who was in the training set, or who was deleted?

There are two questions. About an image: was a forget image trained on, or held out? About a class:
can its test images be told from those of strangers, classes that no model ever saw? A deleted
person should look like a stranger, with AUC 0.5. Both directions count: a suspiciously *un*certain
answer gives a deleted person away as surely as a confident one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.measure.features import Features


@dataclass(frozen=True)
class Separation:
    """How well a score tells two sets apart.

    Attributes:
        score: `loss`, `max_prob` or `entropy`.
        auc: P(first scores higher) + P(equal) / 2; the higher score is the more confident answer.
        tpr: Share of the first set that is found while at most 1 % of the second set is, in the
            better of the two directions.
    """

    score: str
    auc: float
    tpr: float

    @property
    def advantage(self) -> float:
        """|AUC - 0.5|, 0 to 0.5."""
        return abs(self.auc - 0.5)


def membership(train: Features, test: Features) -> tuple[Separation, ...]:
    """Compare forget images that were trained on with held-out ones.

    Args:
        train: Training images of the forgotten classes.
        test: Held-out images of the same classes.
    """
    return tuple(
        separation(name, inside, outside)
        for name, inside, outside in (
            ("loss", -_loss(train), -_loss(test)),
            ("max_prob", max_prob(train.logits), max_prob(test.logits)),
            ("entropy", -entropy(train.logits), -entropy(test.logits)),
        )
    )


def stranger_likeness(deleted: Tensor, strangers: Tensor) -> tuple[Separation, ...]:
    """Compare logits (n, K) of forgotten classes' test images with (m, K) of unknown classes."""
    return (
        separation("max_prob", max_prob(deleted), max_prob(strangers)),
        separation("entropy", -entropy(deleted), -entropy(strangers)),
    )


def separation(score: str, first: Tensor, second: Tensor, *, fpr: float = 0.01) -> Separation:
    """AUC and TPR between two sets' values of a score, (n,) and (m,)."""
    tpr = max(tpr_at(first, second, fpr=fpr), tpr_at(-first, -second, fpr=fpr))
    return Separation(score, auc(first, second), tpr)


def auc(first: Tensor, second: Tensor) -> float:
    """The Mann-Whitney statistic divided by n * m. Ties count half.

    Raises:
        ValueError: One of them is empty.
    """
    if len(first) == 0 or len(second) == 0:
        raise ValueError(f"expected two samples, found {len(first)} and {len(second)} values")
    ordered = second.sort().values
    below = torch.searchsorted(ordered, first, right=False)
    not_above = torch.searchsorted(ordered, first, right=True)
    return float((below + not_above).double().sum() / (2 * len(first) * len(second)))


def tpr_at(first: Tensor, second: Tensor, *, fpr: float) -> float:
    """The largest share of `first` above a threshold that at most `fpr` of `second` exceeds."""
    spared = int(fpr * len(second))
    threshold = second.sort(descending=True).values[spared]
    return float((first > threshold).double().mean())


def max_prob(logits: Tensor) -> Tensor:
    """max_k p_k (n,) of logits (n, K), in float64, so that confident answers aren't tied."""
    return logits.double().softmax(dim=1).amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """-sum_k p_k log p_k in nats (n,) of logits (n, K); a class at -inf adds 0."""
    terms: Tensor = torch.special.entr(logits.double().softmax(dim=1))
    return terms.sum(dim=1)


def _loss(features: Features) -> Tensor:
    return F.cross_entropy(features.logits.double(), features.y, reduction="none")
