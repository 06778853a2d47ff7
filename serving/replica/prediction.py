"""A replica's answers: the scores of a batch of images, and the predictions made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from serving.replica.slot import ReadyRelease

TOP_K = 5
"""How many labels an answer has by default."""


@dataclass(frozen=True)
class Guess:
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    guesses: tuple[Guess, ...]
    """Best first, after the mask."""
    before_mask: tuple[Guess, ...] | None
    """Best first, from the weights alone; None unless the auditor's token was shown."""
    release: int
    parent: int
    request_id: str
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: decode, queue (waiting for a batch), forward."""


@dataclass(frozen=True)
class Scores:
    """One release's scores of N images."""

    logits: Tensor
    """(N, K), before the mask."""
    masked: Tensor
    """(N, K), minus infinity for the classes in the guard."""
    named: Sequence[int]
    """For each image, the best class before the mask."""
    best: Sequence[Sequence[tuple[int, float]]]
    """For each image, the `TOP_K` best classes after the mask with their probabilities."""


def scores_of(logits: Tensor, guard: frozenset[int]) -> Scores:
    """Mask and rank a whole batch, `logits` (N, K), at once: one image would take as long."""
    masked = logits
    if guard:
        masked = logits.clone()
        masked[:, list(guard)] = float("-inf")
    return Scores(logits, masked, logits.argmax(-1).tolist(), best_of(masked, TOP_K))


def best_of(logits: Tensor, top_k: int) -> list[list[tuple[int, float]]]:
    """The `top_k` best classes of each row of `logits` (N, K) with their probabilities.

    Classes of probability 0, such as masked ones, are left out.
    """
    shares, classes = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
    rows = zip(classes.tolist(), shares.tolist(), strict=True)
    return [[(c, p) for c, p in zip(*row, strict=True) if p > 0] for row in rows]


@dataclass(frozen=True)
class Scored:
    """One release's scores of a request's images: rows `first` to `first + count` of `batch`."""

    batch: Scores
    first: int
    count: int
    ready: ReadyRelease
    queued: float
    """Seconds that the request waited for its batch."""
    computed: float
    """Seconds that the batch's forward pass took."""

    @property
    def logits(self) -> Tensor:
        """(count, K), before the mask."""
        return self.batch.logits[self.first : self.first + self.count]

    @property
    def masked(self) -> Tensor:
        """(count, K), minus infinity for the classes in the guard."""
        return self.batch.masked[self.first : self.first + self.count]

    @property
    def named(self) -> Sequence[int]:
        """For each image, the best class before the mask."""
        return self.batch.named[self.first : self.first + self.count]

    def best(self, top_k: int) -> Sequence[tuple[int, float]]:
        """The first image's `top_k` best classes after the mask with their probabilities."""
        if top_k <= TOP_K:
            return self.batch.best[self.first][:top_k]
        return best_of(self.masked[:1], top_k)[0]
