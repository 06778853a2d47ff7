"""Can one tell from the outputs alone who was in the training set, or who was deleted?

Two questions. Of a sample: is a forget image a training image or a test image? Of a class: are
test images of forgotten classes told from those of strangers, classes that no model ever saw? A
deleted person should look like a stranger: AUC 0.5. Both are read two-sided: a deleted person who
is answered with suspicious *un*certainty is found as surely as one who is still recognised.
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
        tpr: Share of the first set found at no more than 1 % of the second, in the better of the
            two directions.
    """

    score: str
    auc: float
    tpr: float

    @property
    def advantage(self) -> float:
        """|AUC - 0.5|, 0 to 0.5."""
        return abs(self.auc - 0.5)


def membership(train: Features, test: Features) -> tuple[Separation, ...]:
    """Forget images that were trained on against forget images that were not.

    Args:
        train: Of the forgotten classes, as the model was trained on.
        test: Of the same classes, held out.
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
    """Logits (n, K) of forgotten classes' test images against (m, K) of classes nobody trained."""
    return (
        separation("max_prob", max_prob(deleted), max_prob(strangers)),
        separation("entropy", -entropy(deleted), -entropy(strangers)),
    )


def separation(score: str, first: Tensor, second: Tensor, *, fpr: float = 0.01) -> Separation:
    """AUC and TPR of one score (n,) against (m,)."""
    tpr = max(tpr_at(first, second, fpr=fpr), tpr_at(-first, -second, fpr=fpr))
    return Separation(score, auc(first, second), tpr)


def auc(first: Tensor, second: Tensor) -> float:
    """The Mann-Whitney statistic over n * m; ties count half.

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
    """Largest share of `first` above a threshold that at most a share `fpr` of `second` exceeds."""
    spared = int(fpr * len(second))
    threshold = second.sort(descending=True).values[spared]
    return float((first > threshold).double().mean())


def max_prob(logits: Tensor) -> Tensor:
    """max_k p_k (n,) of logits (n, K), in float64: confident answers must not become ties."""
    return logits.double().softmax(dim=1).amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """-sum_k p_k log p_k in nats (n,) of logits (n, K); a class at -inf adds 0."""
    terms: Tensor = torch.special.entr(logits.double().softmax(dim=1))
    return terms.sum(dim=1)


def _loss(features: Features) -> Tensor:
    return F.cross_entropy(features.logits.double(), features.y, reduction="none")
