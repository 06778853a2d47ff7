"""What a replica answers: an image's guesses, and the scores that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from serving.replica.slot import ReadyRelease

TOP_K = 5
"""Labels that an answer has unless it is asked for another number."""


@dataclass(frozen=True)
class Guess:
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What one image was taken for. `before_mask`: what the weights alone say, best first, where an
    auditor asks."""

    guesses: tuple[Guess, ...]
    before_mask: tuple[Guess, ...] | None
    release: int
    parent: int
    request_id: str
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: decode, queue (waiting for a batch), forward."""


@dataclass(frozen=True)
class Scores:
    """What one release says of N images."""

    logits: Tensor
    """(N, K), before the mask."""
    masked: Tensor
    """(N, K), minus infinity where the guard is."""
    named: Sequence[int]
    """The class that the weights alone name, by image."""
    best: Sequence[Sequence[tuple[int, float]]]
    """The `TOP_K` best classes behind the mask with their probabilities, by image."""


def scores_of(logits: Tensor, guard: frozenset[int]) -> Scores:
    """Of a batch at once: for one image it takes as long. `logits` (N, K)."""
    masked = logits
    if guard:
        masked = logits.clone()
        masked[:, list(guard)] = float("-inf")
    return Scores(logits, masked, logits.argmax(-1).tolist(), best_of(masked, TOP_K))


def best_of(logits: Tensor, top_k: int) -> list[list[tuple[int, float]]]:
    """The `top_k` best classes of each row (N, K) that are possible at all, and how likely."""
    shares, classes = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
    rows = zip(classes.tolist(), shares.tolist(), strict=True)
    return [[(c, p) for c, p in zip(*row, strict=True) if p > 0] for row in rows]


@dataclass(frozen=True)
class Scored:
    """What one release says of a request's images, rows `first` to `first + count` of `batch`."""

    batch: Scores
    first: int
    count: int
    ready: ReadyRelease
    queued: float
    """Seconds that it waited for its batch."""
    computed: float
    """Seconds of the batch's forward pass."""

    @property
    def logits(self) -> Tensor:
        """(count, K), before the mask."""
        return self.batch.logits[self.first : self.first + self.count]

    @property
    def masked(self) -> Tensor:
        """(count, K), minus infinity where the guard is."""
        return self.batch.masked[self.first : self.first + self.count]

    @property
    def named(self) -> Sequence[int]:
        """The class that the weights alone name, by image."""
        return self.batch.named[self.first : self.first + self.count]

    def best(self, top_k: int) -> Sequence[tuple[int, float]]:
        """The first image's `top_k` best classes behind the mask, and how likely they are."""
        if top_k <= TOP_K:
            return self.batch.best[self.first][:top_k]
        return best_of(self.masked[:1], top_k)[0]
