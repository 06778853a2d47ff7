"""The slot: the only writer of live weights. It builds a release on the side, then flips to it.

A request holds a `Ticket`. The batch that computes it pins the ticket to a release that is in
service at that moment, and the ticket lets go when the response has been sent. `flip` replaces one
reference; `drain` waits until no ticket holds an older release. A batch reads the references once.

In service are the active release and, for a share of the requests, a release on trial: one that was
defined on the active release and forgets more. A flip ends the trial of the release before.

An auditor may ask for any release that can be built. It answers under the guard that is in force,
and counts as the active release, because it has that release's guard.
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
    """A release could not be built; the active one serves on."""


class SelfCheckError(BuildError):
    """A release was built, and does not compute what it should."""


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
    """One request's hold on the releases that answer it: one for each of its images."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._held: list[int] = []
        self.closed = False

    def hold(self, number: int) -> None:
        self._held.append(number)

    def close(self) -> None:
        """The response is out (or never will be)."""
        self.closed = True
        held, self._held = self._held, []
        for number in held:
            self._slot.unpin(number)


@dataclass(frozen=True)
class Wish:
    """One image to be answered. `lot`: its place in [0, 1); a release on trial answers the images
    below its share. `asked`: the release that an auditor wants it answered by."""

    ticket: Ticket
    lot: float = 1.0
    asked: ReadyRelease | None = None


class Slot:
    """What one replica serves. Thread-safe."""

    def __init__(self, engine: Engine, golden: Tensor, *, resident: int = 4) -> None:
        """`golden` (B, C, H, W): the images that every new forward pass is checked with."""
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
        """The release that answers a share of the requests on trial."""
        trial = self._trial
        return None if trial is None else trial[0]

    def forward_for(
        self,
        stack: tuple[str, ...],
        state: Callable[[], EffectiveState],
        check: Callable[[Tensor], None] = lambda logits: None,
    ) -> Forward:
        """The forward pass of the backbone under `stack` (adapter ids), built unless resident.

        `check` gets the golden images' logits of a pass that was just built, and raises
        `SelfCheckError` where they are not what they should be.
        Raises `BuildError` when the engine can't build it, or the check that it computes finite
        numbers fails.
        """
        forward = self._find(stack)
        if forward is not None:
            return forward
        with self._building:  # one at a time; what is resident is found meanwhile
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
        """Serve `ready` from the next batch on. False when a newer release is already active."""
        with self._changed:
            if self._active is not None and self._active.number >= ready.number:
                return False
            self._active = ready
            if self._trial is not None and self._trial[0].parent != ready.number:
                self._trial = None
            self._changed.notify_all()
            return True

    def try_out(self, ready: ReadyRelease, share: float) -> bool:
        """Answer `share` (0 to 1) of the requests from `ready`. False unless it was defined on the
        active release; that it forgets no less is the ledger's rule."""
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
        """The release that answers each of `wishes`, held by its ticket until that is closed."""
        with self._changed:
            active = self._active
            if active is None:
                raise BuildError("no release is active yet")
            chosen = []
            for wish in wishes:
                ready = self._chosen(wish, active)
                chosen.append(ready)
                if not wish.ticket.closed:
                    # What was asked for has the active release's guard, so it ends with that.
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
