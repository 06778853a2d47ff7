"""The replica's side of the lease, on a clock that the test moves."""

from __future__ import annotations

import pytest

from serving.coordination.messages import Pulse, Terms, Wake
from serving.replica.lease import Lease, NotCurrentError, SuspendedError

TERMS = Terms(seconds=8.0, margin=0.5, heartbeat=0.5)
GRANTED = Pulse(committed=0, granted=8.0)
DENIED = Pulse(committed=0, granted=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(TERMS, clock=clock)


def test_a_new_lease_answers_nothing(lease: Lease) -> None:
    with pytest.raises(NotCurrentError, match="run out"):
        lease.check()
    assert lease.running == -1


def test_a_lease_counts_from_the_sending_of_its_heartbeat_less_the_margin(
    lease: Lease, clock: Clock
) -> None:
    beat = lease.beat()
    clock.now += 3  # the reply is slow
    assert lease.take(beat, GRANTED)
    assert lease.left == pytest.approx(8.0 - 0.5 - 3)
    clock.now += 4.5
    with pytest.raises(NotCurrentError):
        lease.check()


def test_the_length_is_the_coordinators_and_not_this_processes_own(lease: Lease) -> None:
    assert lease.take(lease.beat(), Pulse(committed=0, granted=2.0))
    assert lease.left == pytest.approx(1.5)


def test_a_reply_that_grants_nothing_leaves_the_lease_as_it_was(lease: Lease) -> None:
    lease.take(lease.beat(), GRANTED)
    before = lease.left
    assert not lease.take(lease.beat(), DENIED)
    assert lease.left == before


def test_heartbeats_are_numbered_and_say_what_is_served(lease: Lease) -> None:
    lease.confirm(4)
    first, second = lease.beat(), lease.beat()
    assert (first.number, second.number) == (1, 2)
    assert (second.running, second.silent) == (4, False)


def test_a_reply_from_before_a_suspension_brings_no_lease_back(lease: Lease) -> None:
    beat = lease.beat()
    lease.halt()
    assert not lease.take(beat, GRANTED)
    with pytest.raises(SuspendedError):
        lease.check()
    lease.go_on()
    assert not lease.take(beat, GRANTED)
    with pytest.raises(NotCurrentError):
        lease.check()
    assert lease.take(lease.beat(), GRANTED)
    lease.check()


def test_a_replica_is_silent_only_when_everything_is_drained(lease: Lease) -> None:
    lease.halt()
    assert not lease.beat().silent
    lease.fall_silent(drained=False)
    assert not lease.beat().silent
    lease.fall_silent(drained=True)
    assert lease.beat().silent
    lease.go_on()
    assert not lease.beat().silent


def test_a_lease_that_was_ended_never_comes_back(lease: Lease) -> None:
    beat = lease.beat()
    lease.take(beat, GRANTED)
    lease.end()
    assert lease.left < 0
    assert not lease.take(lease.beat(), GRANTED)
    with pytest.raises(NotCurrentError):
        lease.check()


def test_what_a_wake_says_of_a_suspension_is_done_once_silent(lease: Lease) -> None:
    stop, go = Wake(0, 0, suspended=True), Wake(0, 0)
    assert lease.stands_as(go)
    assert not lease.stands_as(stop)
    lease.halt()
    assert not lease.stands_as(go)
    assert not lease.stands_as(stop)  # responses may be on their way
    lease.fall_silent(drained=True)
    assert lease.stands_as(stop)
