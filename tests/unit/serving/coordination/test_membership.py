"""The lease protocol, on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from serving.coordination.membership import Membership
from serving.coordination.messages import CONFIRMED, LEASE_EXPIRED, ReleaseState, Terms

TERMS = Terms(seconds=8.0, margin=0.5, heartbeat=0.5)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settled(clock: Clock) -> Membership:
    """Two members with a lease at release 1, after the grace."""
    membership = Membership(1, terms=TERMS, clock=clock)
    clock.now += TERMS.seconds
    for name in ("a", "b"):
        assert membership.register(name) == 1
        assert membership.heartbeat(name, 1)
    return membership


def test_a_commit_is_acknowledged_when_every_member_has_confirmed(settled: Membership) -> None:
    settled.commit(2)
    assert settled.blocking(2) == {"a", "b"}
    settled.heartbeat("a", 2)
    assert not settled.acknowledged(2)
    settled.heartbeat("b", 2)
    assert settled.acknowledged(2)
    assert settled.outcome(2) == {"a": CONFIRMED, "b": CONFIRMED}


def test_a_silent_member_blocks_until_its_lease_has_run_out(
    settled: Membership, clock: Clock
) -> None:
    settled.commit(2)
    settled.heartbeat("a", 2)
    clock.now += TERMS.seconds - 0.01
    assert not settled.acknowledged(2)
    clock.now += 0.02
    assert settled.acknowledged(2)
    assert settled.outcome(2)["b"] == LEASE_EXPIRED


def test_a_member_that_stays_behind_gets_no_longer_lease(settled: Membership, clock: Clock) -> None:
    settled.commit(2)
    clock.now += 5
    assert not settled.heartbeat("a", 1)
    assert settled.heartbeat("b", 2)
    clock.now += 3.01
    assert settled.acknowledged(2)


def test_a_restarted_coordinator_waits_out_the_leases_that_it_does_not_know(clock: Clock) -> None:
    membership = Membership(5, terms=TERMS, clock=clock)
    membership.heartbeat("a", 5)
    assert not membership.acknowledged(5)
    assert membership.next_change() == pytest.approx(TERMS.seconds)
    clock.now += TERMS.seconds
    assert membership.acknowledged(5)


def test_a_member_that_registers_holds_no_lease_and_blocks_nothing(settled: Membership) -> None:
    settled.register("new")
    settled.commit(2)
    assert settled.blocking(2) == {"a", "b"}
    assert "new" not in settled.outcome(2)


def test_only_members_under_a_lease_have_to_prepare(settled: Membership, clock: Clock) -> None:
    settled.register("new")
    assert settled.unprepared(2) == {"a", "b"}
    settled.prepared("a", ReleaseState(2, "resident"))
    settled.prepared("b", ReleaseState(2, "verified", "not verified: digest differs"))
    assert settled.unprepared(2) == set()
    assert settled.problems(2) == {"b": "not verified: digest differs"}


def test_a_release_that_is_not_newer_cannot_be_committed(settled: Membership) -> None:
    with pytest.raises(ValueError, match="not newer"):
        settled.commit(1)


def test_members_that_left_or_fell_silent_are_forgotten(settled: Membership, clock: Clock) -> None:
    settled.leave("a")
    settled.commit(2)
    assert settled.blocking(2) == {"b"}
    clock.now += 60
    settled.drop_silent(32)
    assert settled.members == {}


def test_a_suspension_is_quiet_when_every_member_is_silent(settled: Membership) -> None:
    assert settled.serving
    settled.suspend(True)
    assert not settled.quiet
    assert not settled.heartbeat("a", 1)
    settled.heartbeat("a", 1, silent=True)
    settled.heartbeat("b", 1, silent=True)
    assert settled.quiet
    assert settled.stopped() == {"a": CONFIRMED, "b": CONFIRMED}


def test_a_member_that_does_not_hear_of_a_suspension_holds_it_up_for_its_lease(
    settled: Membership, clock: Clock
) -> None:
    settled.suspend(True)
    settled.heartbeat("a", 1, silent=True)
    clock.now += TERMS.seconds - 0.01
    assert not settled.heartbeat("b", 1)
    assert not settled.quiet
    clock.now += 0.02
    assert settled.quiet
    assert settled.stopped() == {"a": CONFIRMED, "b": LEASE_EXPIRED}


def test_resuming_gives_leases_to_those_that_speak_up_again(settled: Membership) -> None:
    settled.suspend(True)
    for name in ("a", "b"):
        settled.heartbeat(name, 1, silent=True)
    settled.suspend(False)
    assert not settled.heartbeat("a", 1, silent=True)
    assert settled.heartbeat("a", 1)
    assert not settled.serving
    assert settled.heartbeat("b", 1)
    assert settled.serving


def test_a_heartbeat_that_was_overtaken_takes_no_lease_back(settled: Membership) -> None:
    assert settled.heartbeat("a", 1, beat=2)
    assert not settled.heartbeat("a", 1, silent=True, beat=1)
    settled.suspend(True)
    settled.heartbeat("b", 1, silent=True)
    assert not settled.quiet


def test_a_restarted_coordinator_waits_before_it_says_that_nobody_serves(clock: Clock) -> None:
    membership = Membership(5, terms=TERMS, clock=clock, suspended=True)
    assert not membership.quiet
    clock.now += TERMS.seconds
    assert membership.quiet


class Protocol(RuleBasedStateMachine):
    """Random joins, freezes, lost replies, crashes and restarts; replicas must keep the promises.

    The model of a replica is what it believes: which release it runs and when its own lease ends,
    counted from when it sent its heartbeat, less the margin. There are two invariants. Once a
    release is acknowledged, no replica that believes in its lease serves an older one, or one that
    forgets less. Once a suspension is acknowledged, no replica serves until serving is resumed.

    A replica serves the release that it runs and, if it has read of it, a release on trial that was
    defined on that one. A trial begins and ends without an acknowledgement, and any activation ends
    it.
    """

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.membership = Membership(0, terms=TERMS, clock=self.clock)
        self.ledger = 0
        self.last = 0
        self.canary: tuple[int, int] | None = None
        self.forgets: dict[int, frozenset[int]] = {0: frozenset()}
        self.acknowledged = 0
        self.replicas: dict[str, dict[str, float]] = {}
        self.in_flight: list[tuple[str, float, int, int, int]] = []
        self.born = 0
        self.suspended = False
        self.stopped = False

    @rule()
    def join(self) -> None:
        name = f"r{self.born}"
        self.born += 1
        self.membership.register(name)
        self.replicas[name] = {
            "running": self.ledger,
            "until": float("-inf"),
            "halted": float(self.suspended),
            "stops": 0,
            "beat": 0,
            "canary": 0,
        }

    @rule(data=st.data(), lost=st.booleans())
    def beat(self, data: st.DataObject, lost: bool) -> None:
        if not self.replicas:
            return
        name = data.draw(st.sampled_from(sorted(self.replicas)))
        replica = self.replicas[name]
        replica["beat"] += 1
        extended = self.membership.heartbeat(
            name,
            int(replica["running"]),
            silent=bool(replica["halted"]),
            beat=int(replica["beat"]),
        )
        if extended and not lost:
            replica["until"] = self.clock.now + TERMS.seconds - TERMS.margin

    @rule(data=st.data())
    def send_a_slow_beat(self, data: st.DataObject) -> None:
        if self.replicas:
            name = data.draw(st.sampled_from(sorted(self.replicas)))
            replica = self.replicas[name]
            replica["beat"] += 1
            running, beat, stops = (int(replica[k]) for k in ("running", "beat", "stops"))
            silent = bool(replica["halted"])
            self.in_flight.append((name, self.clock.now, running, beat, -1 if silent else stops))

    @rule()
    def deliver_a_slow_beat(self) -> None:
        if not self.in_flight:
            return
        name, sent, running, beat, stops = self.in_flight.pop(0)
        extended = self.membership.heartbeat(name, running, silent=stops < 0, beat=beat)
        if extended and name in self.replicas and stops == self.replicas[name]["stops"]:
            until = sent + TERMS.seconds - TERMS.margin
            self.replicas[name]["until"] = max(self.replicas[name]["until"], until)

    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        """A replica reads from the ledger, after some delay, whether it may serve."""
        if self.replicas:
            replica = self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]
            if replica["halted"] != self.suspended:
                replica["halted"] = float(self.suspended)
                replica["stops"] += 1
                replica["until"] = float("-inf")

    @rule(told=st.booleans(), suspended=st.booleans())
    def suspend_or_resume(self, told: bool, suspended: bool) -> None:
        self.suspended = suspended
        self.stopped = self.stopped and suspended
        if told:
            self.membership.suspend(suspended)
        else:
            self.restart_the_coordinator()

    @rule()
    def acknowledge_the_suspension(self) -> None:
        self.stopped = self.stopped or self.membership.quiet

    @rule(data=st.data())
    def catch_up(self, data: st.DataObject) -> None:
        if self.replicas:
            replica = self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]
            if replica["running"] < self.ledger:
                replica["running"], replica["canary"] = self.ledger, 0

    @rule(data=st.data())
    def follow_the_trial(self, data: st.DataObject) -> None:
        """A replica reads that a trial began or ended. It joins one on the release that it runs."""
        if self.replicas:
            replica = self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]
            number, base = self.canary or (0, -1)
            replica["canary"] = number if replica["running"] == base else 0

    @rule()
    def begin_a_trial(self) -> None:
        """Begin a trial of a release that forgets one more class than the active one."""
        if self.canary is None:
            self.last += 1
            self.forgets[self.last] = self.forgets[self.ledger] | {self.last}
            self.canary = (self.last, self.ledger)

    @rule()
    def end_the_trial(self) -> None:
        self.canary = None

    @rule(told=st.booleans())
    def promote(self, told: bool) -> None:
        if self.canary is not None:
            self._activate(self.canary[0], told)

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if self.replicas:
            del self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]

    @rule(told=st.booleans())
    def activate(self, told: bool) -> None:
        """The activation is durable first; the coordinator may crash before it tells anybody."""
        self.last += 1
        self.forgets[self.last] = self.forgets[self.ledger] | {self.last}
        self._activate(self.last, told)

    def _activate(self, number: int, told: bool) -> None:
        self.ledger, self.canary = number, None
        if told:
            self.membership.commit(number)
        else:
            self.restart_the_coordinator()

    @rule()
    def restart_the_coordinator(self) -> None:
        self.membership = Membership(
            self.ledger, terms=TERMS, clock=self.clock, suspended=self.suspended
        )

    @rule(seconds=st.floats(0.01, 9.0))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def acknowledge(self) -> None:
        if self.membership.acknowledged(self.membership.committed):
            self.acknowledged = max(self.acknowledged, self.membership.committed)

    @invariant()
    def nobody_serves_what_is_older_than_the_acknowledged(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for name, replica in self.replicas.items():
            if replica["until"] > self.clock.now:
                for number in {int(replica["running"]), int(replica["canary"])} - {0}:
                    assert number >= self.acknowledged, name
                    assert self.forgets[number] >= self.forgets[self.acknowledged], name
                assert replica["running"] >= self.acknowledged, name
                assert not self.stopped, name


Protocol.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestProtocol = Protocol.TestCase
