"""A replica's side of the lease: whether it may answer, and until when.

The coordinator's side is `serving.coordination.membership`. A replica counts its lease from the
moment at which it *sent* the heartbeat, less a margin, so its lease always ends before the one that
the coordinator counts. A reply counts only if the lease was not given up since its heartbeat was
sent: a slow reply must not bring back a lease that a suspension has ended.

Pure: no thread, no Ray and no I/O. `Member` owns one and serialises the calls that change it.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.coordination.membership import Clock, boot_clock
from serving.coordination.messages import Pulse, Terms, Wake
from serving.errors import ServingError


class NotCurrentError(ServingError):
    """This replica can't prove that it is current, so it doesn't serve."""


class SuspendedError(ServingError):
    """The ledger says that nothing may be served."""


@dataclass(frozen=True)
class Heartbeat:
    """What a replica says of itself, and what it must remember until the reply comes."""

    number: int
    """Counts this replica's heartbeats from 1."""
    running: int
    """The release that it serves; it has drained all older ones. -1: none yet."""
    silent: bool
    """It holds no lease and answers nothing, because serving is suspended."""
    sent: float
    """When it was sent, on the replica's clock."""
    voids: int
    """How often the lease had been given up by then."""


class Lease:
    """One replica's lease. Not thread-safe: its owner serialises the calls that change it."""

    def __init__(self, terms: Terms, *, clock: Clock = boot_clock) -> None:
        self._terms = terms
        self._clock = clock
        self._until = float("-inf")
        self._running = -1
        self._suspended = False
        self._silent = False
        self._ended = False
        self._beats = 0
        self._voids = 0

    # -- what the request path asks

    @property
    def left(self) -> float:
        """Seconds for which this replica may still answer; negative when it may not."""
        return self._until - self._clock()

    @property
    def suspended(self) -> bool:
        """Whether serving is suspended, as far as this replica knows."""
        return self._suspended

    def check(self) -> None:
        """Raises `SuspendedError` while serving is suspended, `NotCurrentError` without a lease."""
        if self._suspended:
            raise SuspendedError("serving is suspended")
        if self.left <= 0:
            raise NotCurrentError("this replica's lease has run out; it may be behind")

    # -- heartbeats

    def beat(self) -> Heartbeat:
        """The next heartbeat, as of now."""
        self._beats += 1
        return Heartbeat(self._beats, self._running, self._silent, self._clock(), self._voids)

    def take(self, sent: Heartbeat, pulse: Pulse) -> bool:
        """Extend the lease by the reply to `sent`; True when it was extended.

        The length is the coordinator's, which waits by its own terms, and not the one that this
        process was started with.
        """
        if not pulse.granted or self._ended or sent.voids != self._voids:
            return False
        self._until = sent.sent + pulse.granted - self._terms.margin
        return True

    # -- what the replica has done

    @property
    def running(self) -> int:
        """The newest release that `confirm` was told of; -1: none yet."""
        return self._running

    @property
    def silent(self) -> bool:
        """Whether nothing is answered and nothing is on its way out."""
        return self._silent

    def confirm(self, release: int) -> None:
        """This replica serves `release`, and answers nothing from an older one any more."""
        self._running = release

    def halt(self) -> None:
        """Answer nothing from here on. To stop, the coordinator's word is enough."""
        self._suspended = True
        self._void()

    def fall_silent(self, *, drained: bool) -> None:
        """After `halt`: whether the answers that were checked before it are all out."""
        self._silent = drained

    def go_on(self) -> None:
        """The ledger says that serving is not suspended. The next heartbeat asks for a lease."""
        self._silent = False
        self._void()
        self._suspended = False

    def end(self) -> None:
        """Stop serving for good: no reply brings a lease any more."""
        self._ended = True
        self._void()

    def stands_as(self, wake: Wake) -> bool:
        """Whether this replica has done what `wake` says of a suspension."""
        return self._silent if wake.suspended else not self._suspended

    def _void(self) -> None:
        self._voids += 1
        self._until = float("-inf")
