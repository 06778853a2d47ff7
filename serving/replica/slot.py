"""The slot holds a replica's live weights. It builds a release on the side, then flips to it.

A request holds a `Ticket`. When a batch computes the request, it pins the ticket to a release that
is served at that moment; the ticket lets go of it when the response has been sent. `flip` replaces
one reference, and `drain` waits until no ticket holds an older release.

Served are the active release and, for a share of the requests, a release on trial: one that was
defined on the active release and forgets more. A flip ends the trial on the release before.

An auditor may ask for any release that can be built. It answers under the active release's guard,
so its ticket is pinned to the active release.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from forgetting.errors import TargetError
from serving.errors import ServingError
from serving.replica.engines import Engine, EngineError, Forward


class BuildError(ServingError):
    """A release could not be built; the active one is still served."""


class SelfCheckError(BuildError):
    """A release was built, but its logits on the golden image are wrong."""


@dataclass(frozen=True)
class Measured:
    """What the reports of a release's adapters measured on held-out images (0 to 1)."""

    leak: float
    """The share of forgotten images that is still recognised, for the worst adapter."""
    drift: float
    """Accuracy on retained classes that was lost compared with the bare backbone."""


@dataclass(frozen=True)
class ReadyRelease:
    """A release that is ready to be served. Class indices are the head's."""

    number: int
    parent: int
    forward: Forward
    guard: frozenset[int]
    erased: frozenset[int]
    """Classes that the weights were taught to forget (the guard may hold more)."""
    groups: int
    """How many LoRA groups are in effect."""
    stack: str
    """Name of the stack of adapters; it doesn't depend on the guard."""
    measured: Measured


class Ticket:
    """Counts a request as in flight on the releases that answer it, until it is closed."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._held: list[int] = []
        self.closed = False

    def hold(self, number: int) -> None:
        self._held.append(number)

    def close(self) -> None:
        """Call this when the response has been sent, or will not be sent."""
        self.closed = True
        held, self._held = self._held, []
        for number in held:
            self._slot.unpin(number)


@dataclass(frozen=True)
class Wish:
    """What decides which release answers a request."""

    ticket: Ticket
    lot: float = 1.0
    """Its place in [0, 1); a release on trial answers the places below its share."""
    asked: ReadyRelease | None = None
    """The release that an auditor asks for."""


class Slot:
    """What one replica serves. Thread-safe."""

    def __init__(self, engine: Engine, golden: Tensor, *, resident: int = 4) -> None:
        """`golden` (B, C, H, W): the images on which every new forward pass is checked. `resident`:
        how many forward passes are kept in memory."""
        self._engine = engine
        self._golden = golden
        self._resident = resident
        self._forwards: OrderedDict[tuple[str, ...], Forward] = OrderedDict()
        self._active: ReadyRelease | None = None
        self._trial: tuple[ReadyRelease, float] | None = None
        self._pins: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._building = threading.Lock()
        self._books = threading.Lock()
        self.bare = self.forward_for((), EffectiveState)

    @property
    def active(self) -> ReadyRelease | None:
        return self._active

    @property
    def trial(self) -> ReadyRelease | None:
        """The release on trial; None if there is none."""
        trial = self._trial
        return None if trial is None else trial[0]

    def forward_for(
        self,
        stack: tuple[str, ...],
        state: Callable[[], EffectiveState],
        check: Callable[[Tensor], None] = lambda logits: None,
    ) -> Forward:
        """The forward pass of the backbone under `stack` (adapter ids); built if not resident.

        `check` is called with the golden images' logits of a pass that was just built; it raises
        `SelfCheckError` when they are wrong.
        Raises `BuildError` when the engine can't build the pass, and `SelfCheckError` when its
        logits are not finite.
        """
        forward = self._find(stack)
        if forward is not None:
            return forward
        with self._building:  # one build at a time; resident passes are found meanwhile
            forward = self._find(stack)
            if forward is not None:
                return forward
            try:
                forward = self._engine.build(state())
            except (EngineError, TargetError) as error:
                raise BuildError(str(error)) from error
            logits = forward(self._golden)
            if not bool(torch.isfinite(logits).all()):
                raise SelfCheckError("the release's logits are not finite")
            check(logits)
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
            serving = {id(ready.forward) for ready in (self._active, self.trial) if ready}
            idle = [
                # The bare backbone stays too: the shadow needs it.
                key
                for key, built in self._forwards.items()
                if key and key != stack and id(built) not in serving
            ]
            for key in idle[: max(len(self._forwards) - self._resident, 0)]:
                del self._forwards[key]

    def flip(self, ready: ReadyRelease) -> bool:
        """Serve `ready` from the next batch on. False when it or a newer one is already active."""
        with self._changed:
            if self._active is not None and self._active.number >= ready.number:
                return False
            self._active = ready
            if self._trial is not None and self._trial[0].parent != ready.number:
                self._trial = None
            self._changed.notify_all()
            return True

    def try_out(self, ready: ReadyRelease, share: float) -> bool:
        """Answer `share` (0 to 1) of the requests from `ready`. False unless `ready` was defined on
        the active release. (The ledger's rules ensure that it forgets no less.)"""
        with self._changed:
            if self._active is None or ready.parent != self._active.number:
                return False
            self._trial = (ready, share)
            return True

    def end_trial(self) -> None:
        """Answer all requests from the active release."""
        with self._changed:
            self._trial = None

    def pin(self, wishes: Sequence[Wish]) -> list[ReadyRelease]:
        """The release that answers each of `wishes`. Its ticket holds it until that is closed."""
        with self._changed:
            active = self._active
            if active is None:
                raise BuildError("no release is active yet")
            chosen = []
            for wish in wishes:
                ready = self._chosen(wish, active)
                chosen.append(ready)
                if not wish.ticket.closed:
                    # A release that an auditor asked for answers under the active release's guard,
                    # so it must be drained when the active one is.
                    number = active.number if wish.asked is not None else ready.number
                    self._pins[number] += 1
                    wish.ticket.hold(number)
            return chosen

    def _chosen(self, wish: Wish, active: ReadyRelease) -> ReadyRelease:
        if wish.asked is not None:
            return replace(wish.asked, guard=active.guard)
        if self._trial is not None and wish.lot < self._trial[1]:
            return self._trial[0]
        return active

    def unpin(self, number: int) -> None:
        with self._changed:
            self._pins[number] -= 1
            if self._pins[number] <= 0:
                del self._pins[number]
                self._changed.notify_all()

    def drain(self, number: int | None, timeout: float) -> bool:
        """Wait until no request is being answered by a release older than `number`, or with None by
        any release. False after `timeout` seconds."""

        def drained() -> bool:
            return all(number is not None and pinned >= number for pinned in self._pins)

        with self._changed:
            return self._changed.wait_for(drained, timeout)

    def wait_for(self, number: int, timeout: float) -> bool:
        """Wait until release `number` or a newer one is active; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._active is not None and self._active.number >= number, timeout
            )
