"""The lease protocol, on a clock that the test moves."""

from __future__ import annotations

import pytest

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
