"""The lease protocol, on the coordinator's side: a state machine without Ray and I/O.

A member serves only under a lease. The coordinator extends a lease only while the member runs
the committed release (or a newer one that it read from the ledger first). So after a commit, once
every member has confirmed or its lease has run out, no older release can be served.
The member counts its lease from when it *sent* the heartbeat, less a margin; the coordinator counts
from when it *received* it. So the member's lease always ends first.

While serving is suspended, no lease is extended. A member then gives up its lease, waits until its
last responses are sent, and reports that it is *silent*. When no lease is left, nothing is
answered.

`clock` returns seconds on any clock that never jumps back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serving.coordination.messages import (
    CONFIRMED,
    LEASE_EXPIRED,
    How,
    MemberView,
    ReleaseState,
    Terms,
)

Clock = Callable[[], float]


def boot_clock() -> float:
    """Seconds since boot, including sleep: leases also run out while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class MemberState:
    """What the coordinator knows of one member."""

    running: int = -1
    """The highest release that it serves after draining all older ones; -1: none yet."""
    lease_until: float = float("-inf")
    heard: float = float("-inf")
    prepared: dict[int, ReleaseState] = field(default_factory=dict)
    """By number, the releases that it was asked to build or could not serve."""
    silent: bool = False
    """It reported that it holds no lease and answers nothing, because serving is suspended."""
    beat: int = 0
    """Number of its newest heartbeat."""


class Membership:
    """The coordinator's view of its members. Single-threaded: its owner serialises the calls."""

    def __init__(
        self,
        committed: int,
        *,
        terms: Terms,
        clock: Clock = boot_clock,
        suspended: bool = False,
    ) -> None:
        self._terms = terms
        self._clock = clock
        self._committed = committed
        self._suspended = suspended
        # A previous coordinator may have granted leases that this one doesn't know.
        self._grace_until = clock() + terms.seconds
        self._members: dict[str, MemberState] = {}

    @property
    def committed(self) -> int:
        return self._committed

    @property
    def members(self) -> dict[str, MemberState]:
        return dict(self._members)

    def register(self, name: str) -> int:
        """Add a member without a lease; return the committed release. One atomic step."""
        self._members[name] = MemberState(heard=self._clock())
        return self._committed

    def leave(self, name: str) -> None:
        """Remove a member that stops serving for good; it has ended its lease itself."""
        self._members.pop(name, None)

    def heartbeat(self, name: str, running: int, *, silent: bool = False, beat: int = 0) -> bool:
        """Note that `name` runs release `running`; True when its lease was extended.

        `silent`: it has given its lease up. `beat` numbers its heartbeats. One that arrives after
        a newer one is ignored: a late `silent` would otherwise end a lease that is in use.
        """
        now = self._clock()
        member = self._members.get(name, MemberState())
        if beat < member.beat:
            return False
        extended = running >= self._committed and not self._suspended and not silent
        lease_until = now + self._terms.seconds if extended else member.lease_until
        prepared = member.prepared
        if running > member.running:
            # It serves a newer release now, so problems with older ones no longer matter.
            ahead = {number: state for number, state in prepared.items() if number > running}
            prepared = {running: ReleaseState(running, "active"), **ahead}
        self._members[name] = replace(
            member,
            prepared=prepared,
            running=running,
            lease_until=float("-inf") if silent else lease_until,
            heard=now,
            silent=silent,
            beat=beat,
        )
        return extended

    def prepared(self, name: str, state: ReleaseState) -> None:
        """Note how far `name` is with a release; with a problem, it stopped there."""
        if name in self._members:
            self._members[name].prepared[state.release] = state

    def suspend(self, suspended: bool) -> None:
        """Note that the ledger says whether serving is suspended."""
        self._suspended = suspended

    def commit(self, release: int) -> None:
        """Make `release`, whose activation is durable, the committed one. Raises ValueError if it
        is not newer."""
        if release <= self._committed:
            raise ValueError(f"release {release} is not newer than release {self._committed}")
        self._committed = release
        for member in self._members.values():
            for old in [number for number in member.prepared if number < release]:
                del member.prepared[old]

    def unprepared(self, release: int) -> set[str]:
        """Members under a lease that have not reported yet whether they built `release`."""
        now = self._clock()
        return {
            name
            for name, member in self._members.items()
            if member.lease_until > now and release not in member.prepared
        }

    def problems(self, release: int) -> dict[str, str]:
        """Why `release` could not be built, by member."""
        return {
            name: state.problem
            for name, member in self._members.items()
            if (state := member.prepared.get(release)) is not None and state.problem is not None
        }

    def blocking(self, release: int) -> set[str]:
        """Members that could still answer from a release older than `release`."""
        now = self._clock()
        return {
            name
            for name, member in self._members.items()
            if member.running < release and member.lease_until > now
        }

    def next_change(self) -> float:
        """Seconds until the next lease, or the grace after a restart, runs out."""
        now = self._clock()
        ends = [m.lease_until for m in self._members.values() if m.lease_until > now]
        ends += [self._grace_until] if self._grace_until > now else []
        return min(ends) - now if ends else self._terms.seconds

    @property
    def settled(self) -> bool:
        """False during the grace: members of a previous coordinator may hold unknown leases."""
        return self._clock() >= self._grace_until

    @property
    def leased_members(self) -> set[str]:
        """Members that hold a lease now."""
        now = self._clock()
        return {name for name, member in self._members.items() if member.lease_until > now}

    @property
    def leased(self) -> int:
        return len(self.leased_members)

    def acknowledged(self, release: int) -> bool:
        """True when no response to a request sent from now on can be older than `release`."""
        return self._committed >= release and self.settled and not self.blocking(release)

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def quiet(self) -> bool:
        """True when no response to any request can be sent until serving is resumed."""
        return self._suspended and self.settled and not self.leased

    @property
    def serving(self) -> bool:
        """True when there is a member and every member holds a lease."""
        return 0 < len(self._members) == self.leased

    def stopped(self) -> dict[str, How]:
        """How each member came to answer nothing: it reported so, or its lease ran out."""
        return {
            name: CONFIRMED if member.silent else LEASE_EXPIRED
            for name, member in self._members.items()
            if member.silent or member.lease_until > float("-inf")
        }

    def outcome(self, release: int) -> dict[str, How]:
        """How each member came to be past `release`: it confirmed, or its lease ran out."""
        return {
            name: CONFIRMED if member.running >= release else LEASE_EXPIRED
            for name, member in self._members.items()
            if member.lease_until > float("-inf") or member.running >= release
        }

    def view(self) -> dict[str, MemberView]:
        """What is known of each member, for status pages."""
        return {
            name: {
                "release": member.running,
                "behind": member.running < self._committed,
                "stages": {str(s.release): s.stage for s in member.prepared.values()},
                "problem": next((s.problem for s in member.prepared.values() if s.problem), None),
            }
            for name, member in self._members.items()
        }

    def drop_silent(self, seconds: float) -> None:
        """Remove members without a lease that sent no heartbeat for `seconds`."""
        now = self._clock()
        self._members = {
            name: member
            for name, member in self._members.items()
            if member.lease_until > now or now - member.heard < seconds
        }
