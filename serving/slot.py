"""The slot: the only writer of live weights. Builds a release on the side, then flips to it.

A request holds a `Ticket`; the batch that computes it pins the ticket to the release that is
active at that moment, and the ticket lets go when the response has been sent. `flip` replaces
one reference; `drain` waits until no ticket holds an older release. A batch reads the reference
once, so it is never mixed.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetting.stack import EffectiveState
from serving.engines import Engine, Forward


class BuildError(Exception):
    """A release could not be built; the active one serves on."""


@dataclass(frozen=True)
class Measured:
    """What the reports of a release's adapters found on held-out images."""

    leak: float
    """Highest share of a forgotten task's images that is still recognised."""
    drift: float
    """Accuracy lost on retained classes against the bare backbone."""


@dataclass(frozen=True)
class ReadyRelease:
    """A release that stands ready to serve. Class indices are the head's."""

    number: int
    parent: int
    forward: Forward
    guard: frozenset[int]
    erased: frozenset[int]
    """Classes that the weights were taught to forget (the guard may hold more)."""
    groups: int
    """LoRA groups that are in effect."""
    stack: str
    """Names the adapters that are in effect, whatever the guard."""
    measured: Measured


class Ticket:
    """One request's hold on the release that answers it."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._ready: ReadyRelease | None = None
        self.closed = False

    def pin(self, ready: ReadyRelease) -> None:
        self._ready = ready

    def close(self) -> None:
        """The response is out (or never will be)."""
        self.closed = True
        ready, self._ready = self._ready, None
        if ready is not None:
            self._slot.unpin(ready)


class Slot:
    """What one replica serves. Thread-safe."""

    def __init__(self, engine: Engine, probe: Tensor, *, resident: int = 4) -> None:
        """`probe` (B, C, H, W) is what a new forward pass is checked with."""
        self._engine = engine
        self._probe = probe
        self._resident = resident
        self._forwards: OrderedDict[tuple[str, ...], Forward] = OrderedDict()
        self._active: ReadyRelease | None = None
        self._pins: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._building = threading.Lock()
        self._books = threading.Lock()
        self.bare = self.forward_for((), EffectiveState)

    @property
    def active(self) -> ReadyRelease | None:
        return self._active

    def forward_for(self, stack: tuple[str, ...], state: Callable[[], EffectiveState]) -> Forward:
        """The forward pass of the backbone under `stack` (adapter ids), built unless resident.

        Raises `BuildError` when the check that it computes finite numbers fails.
        """
        forward = self._find(stack)
        if forward is not None:
            return forward
        with self._building:  # one at a time; what is resident is found meanwhile
            forward = self._find(stack)
            if forward is not None:
                return forward
            forward = self._engine.build(state())
            if not bool(torch.isfinite(forward(self._probe)).all()):
                raise BuildError("self-check failed: the release's logits are not finite")
            self._keep(stack, forward)
            return forward

    def _find(self, stack: tuple[str, ...]) -> Forward | None:
        with self._books:
            forward = self._forwards.get(stack)
            if forward is not None:
                self._forwards.move_to_end(stack)
            return forward

    def _keep(self, stack: tuple[str, ...], forward: Forward) -> None:
        with self._books:
            self._forwards[stack] = forward
            while len(self._forwards) > self._resident:
                # The bare backbone stays: the shadow needs it.
                oldest = next(key for key in self._forwards if key)
                del self._forwards[oldest]

    def flip(self, ready: ReadyRelease) -> bool:
        """Serve `ready` from the next batch on. False when a newer release is already active."""
        with self._changed:
            if self._active is not None and self._active.number >= ready.number:
                return False
            self._active = ready
            self._changed.notify_all()
            return True

    def pin(self, tickets: list[Ticket]) -> ReadyRelease:
        """The active release, held by every one of `tickets` until it is closed."""
        with self._changed:
            if self._active is None:
                raise BuildError("no release is active yet")
            for ticket in tickets:
                self._pins[self._active.number] += 1
                ticket.pin(self._active)
            return self._active

    def unpin(self, ready: ReadyRelease) -> None:
        with self._changed:
            self._pins[ready.number] -= 1
            if self._pins[ready.number] <= 0:
                del self._pins[ready.number]
                self._changed.notify_all()

    def drain(self, number: int | None, timeout: float) -> bool:
        """Wait until nothing older than release `number` is being answered, or with None nothing
        at all; False on timeout."""

        def drained() -> bool:
            return all(number is not None and pinned >= number for pinned in self._pins)

        with self._changed:
            return self._changed.wait_for(drained, timeout)

    def wait_for(self, number: int, timeout: float) -> bool:
        """Wait until release `number` or a newer one is active; False on timeout."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._active is not None and self._active.number >= number, timeout
            )
