"""A replica's answers: the scores of a batch of images, and what is made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from serving.errors import ServingError
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


class NoFeatureError(ServingError):
    """This backbone has no feature that may be handed out; the message says why. HTTP 501."""


@dataclass(frozen=True)
class Embedding:
    """The L2-normalised feature of one image."""

    vector: Tensor = field(repr=False)
    """(d,) float32 of length 1."""
    space: str
    """Names the backbone and the stack of adapters that made it. Vectors of one space can be
    compared."""
    masked_only: int
    """How many classes the release masks that its weights were not taught to forget."""
    release: int
    parent: int
    request_id: str
    stages: Mapping[str, float] = field(default_factory=dict)
    """As of a `Prediction`."""


def space_of(fingerprint: str, stack: str) -> str:
    """The name of the vector space of a backbone (by its fingerprint) under a stack (by its name).

    A release's number doesn't do: a guard changes the number and no vector, and after a seal the
    numbers begin anew.
    """
    return hashlib.sha256(f"{fingerprint}\n{stack}".encode()).hexdigest()[:16]


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
    vectors: Tensor | None = None
    """(N, d), the L2-normalised features; None if no request of the batch asked for them."""


def scores_of(logits: Tensor, guard: frozenset[int], features: Tensor | None = None) -> Scores:
    """Mask and rank a whole batch, `logits` (N, K), at once: one image would take as long.

    `features` (N, d): what the head read.
    """
    masked = logits
    if guard:
        masked = logits.clone()
        masked[:, list(guard)] = float("-inf")
    vectors = None if features is None else F.normalize(features, dim=-1)
    return Scores(logits, masked, logits.argmax(-1).tolist(), best_of(masked, TOP_K), vectors)


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

    @property
    def vectors(self) -> Tensor:
        """(count, d), the L2-normalised features. Raises RuntimeError if they were not asked
        for."""
        if self.batch.vectors is None:
            raise RuntimeError("no request of this batch asked for features")
        return self.batch.vectors[self.first : self.first + self.count]

    def best(self, top_k: int) -> Sequence[tuple[int, float]]:
        """The first image's `top_k` best classes after the mask with their probabilities."""
        if top_k <= TOP_K:
            return self.batch.best[self.first][:top_k]
        return best_of(self.masked[:1], top_k)[0]
