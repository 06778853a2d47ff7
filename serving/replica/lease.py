"""The lease protocol, on a replica's side: whether the replica may answer, and until when.

The coordinator's side is `serving.coordination.membership`. A replica counts its lease from when it
*sent* the heartbeat, less a margin, so its lease always ends before the coordinator takes it as
ended. A reply is ignored if the lease was given up after its heartbeat was sent: a slow reply must
not bring back a lease that a suspension has ended.

No threads, Ray or I/O here, and no clock but the one that is given. Thread-safe.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from serving.coordination.membership import Clock, boot_clock
from serving.coordination.messages import Pulse, Terms, Wake
from serving.errors import ServingError


class NotCurrentError(ServingError):
    """This replica can't prove that it runs the current release, so it doesn't serve."""


class SuspendedError(ServingError):
    """Serving is suspended."""


@dataclass(frozen=True)
class Heartbeat:
    """What a replica reports, and what it must remember until the reply comes."""

    number: int
    """Counts this replica's heartbeats from 1."""
    running: int
    """The release that it serves; it has drained all older ones. -1: none yet."""
    silent: bool
    """It holds no lease and answers nothing, because serving is suspended."""
    sent: float
    """When it was sent, on the replica's clock."""
    voids: int
    """How often the lease was given up before it was sent."""


class Lease:
    """One replica's lease. Thread-safe: one thread keeps it, another follows, requests check it."""

    def __init__(self, terms: Terms, *, clock: Clock = boot_clock) -> None:
        self._terms = terms
        self._clock = clock
        self._lock = threading.Lock()  # of whoever changes it; to check takes none
        self._until = float("-inf")
        self._running = -1
        self._suspended = False
        self._silent = False
        self._ended = False
        self._beats = 0
        self._voids = 0

    # -- the request path calls these

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
        """The next heartbeat, to be sent now."""
        with self._lock:
            self._beats += 1
            return Heartbeat(self._beats, self._running, self._silent, self._clock(), self._voids)

    def take(self, sent: Heartbeat, pulse: Pulse) -> bool:
        """Extend the lease by the reply to `sent`; True when it was extended.

        The reply names the length. It is the coordinator's, which may differ from the length in the
        terms that this process was started with.
        """
        with self._lock:
            if not pulse.granted or self._ended or sent.voids != self._voids:
                return False
            self._until = sent.sent + pulse.granted - self._terms.margin
            return True

    # -- the replica reports what it has done

    @property
    def running(self) -> int:
        """The newest release that was confirmed; -1: none yet."""
        return self._running

    @property
    def silent(self) -> bool:
        """Whether serving is suspended and all earlier responses have been sent."""
        return self._silent

    def confirm(self, release: int) -> None:
        """Note that this replica serves `release` and has drained all older ones."""
        with self._lock:
            self._running = release

    def halt(self) -> None:
        """Give the lease up and refuse all requests. The coordinator's word is enough for this."""
        with self._lock:
            self._suspended = True
            self._void()

    def fall_silent(self, *, drained: bool) -> None:
        """Note, after `halt`, whether all responses that were checked before it have been sent."""
        with self._lock:
            self._silent = drained

    def go_on(self) -> None:
        """End the suspension, as the ledger says. The next heartbeat asks for a lease."""
        with self._lock:
            self._silent = False
            # In this order, so that a check in between finds no lease.
            self._void()
            self._suspended = False

    def end(self) -> None:
        """Give the lease up for good; later replies are ignored."""
        with self._lock:
            self._ended = True
            self._void()

    def stands_as(self, wake: Wake) -> bool:
        """Whether this replica has already suspended or resumed as `wake` says."""
        return self._silent if wake.suspended else not self._suspended

    def _void(self) -> None:
        self._voids += 1
        self._until = float("-inf")
