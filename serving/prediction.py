"""What a replica answers: an image's guesses, and the scores that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from serving.slot import ReadyRelease


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
class Scored:
    """What one release says of a request's images."""

    logits: Tensor
    """(B, K), before the mask."""
    ready: ReadyRelease
    queued: float
    """Seconds that it waited for its batch."""
    computed: float
    """Seconds of the batch's forward pass."""

    @property
    def masked(self) -> Tensor:
        """(B, K), minus infinity where the guard is."""
        if not self.ready.guard:
            return self.logits
        masked = self.logits.clone()
        masked[:, list(self.ready.guard)] = float("-inf")
        return masked
