"""The promise, on the real code of replicas and coordinator, under random schedules.

A replica is a real `Lease` and a real `Slot`, changed by the real `take_up` and `obey`; the
coordinator's side is a real `Membership`. The test moves their clock, carries the messages, and
stands for the ledger and the requests.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from serving.coordination.membership import Membership
from serving.coordination.messages import Pulse, Terms
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.lease import Heartbeat, Lease, NotCurrentError, SuspendedError
from serving.replica.slot import Measured, ReadyRelease, Slot, Ticket, Wish
from serving.replica.swap import obey, take_up

T = TypeVar("T")
Told = Literal["at once", "later", "by a restart"]
"""How the coordinator comes to know what is durable."""
Heard = Literal["by nobody", "by all", "and said so"]
"""By which replicas the ledger is read again at once."""
TOLD: st.SearchStrategy[Told] = st.sampled_from(
    ["at once", "at once", "at once", "later", "by a restart"]
)
HEARD: st.SearchStrategy[Heard] = st.sampled_from(["by nobody", "by all", "and said so"])

TERMS = Terms(seconds=8.0, margin=0.5, heartbeat=0.5)
SHARE = 0.5
"""Of the requests that a release on trial answers."""
MOST_REPLICAS, MOST_MESSAGES = 3, 3
ENGINE = TorchEngine(nn.Linear(2, 2).eval())
GOLDEN = torch.zeros(1, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Defined:
    parent: int
    forgets: frozenset[int]


@dataclass(frozen=True)
class Book:
    """What the ledger says. A replica acts on a copy that it read some time ago."""

    releases: Mapping[int, Defined] = field(default_factory=lambda: {0: Defined(0, frozenset())})
    active: int = 0
    trial: int | None = None
    suspended: bool = False

    def defining(self) -> Book:
        """One release more, on the active one; it forgets one class more."""
        number = max(self.releases) + 1
        release = Defined(self.active, self.releases[self.active].forgets | {number})
        return replace(self, releases={**self.releases, number: release})

    @property
    def fit(self) -> list[int]:
        """The releases that may be activated or tried out."""
        return [n for n, r in self.releases.items() if n > self.active and r.parent == self.active]


class Replica:
    """What `Member` holds, and one round of its `catch_up`."""

    def __init__(self, name: str, book: Book, clock: Clock) -> None:
        self.name = name
        self.slot = Slot(ENGINE, GOLDEN)
        self.lease = Lease(TERMS, clock=clock)
        self.read = book
        self.ended = False

    def catch_up(self) -> None:
        obey(suspended=self.read.suspended, slot=self.slot, lease=self.lease, timeout=0)
        if self.read.active > self.lease.running:
            take_up(self._ready(self.read.active), self.slot, self.lease, timeout=0)
        if self.read.trial is None:
            self.slot.end_trial()
        else:
            self.slot.try_out(self._ready(self.read.trial), SHARE)

    def _ready(self, number: int) -> ReadyRelease:
        release = self.read.releases[number]
        forward, guard = self.slot.bare, release.forgets
        return ReadyRelease(
            number, release.parent, forward, guard, guard, 0, "bare", Measured(0.0, 0.0)
        )

    @property
    def may_answer(self) -> bool:
        try:
            self.lease.check()
        except (NotCurrentError, SuspendedError):
            return False
        return True

    def answering(self, lot: float) -> ReadyRelease:
        """The release that would answer a request now."""
        ticket = Ticket(self.slot)
        (ready,) = self.slot.pin([Wish(ticket, lot)])
        ticket.close()
        return ready


@dataclass
class Message:
    """A heartbeat on its way, then its reply on the way back. Without one: a farewell."""

    replica: Replica
    beat: Heartbeat | None = None
    pulse: Pulse | None = None


@dataclass
class Request:
    """An image in a batch, from when its ticket is pinned until its response is sent."""

    replica: Replica
    ticket: Ticket
    ready: ReadyRelease
    acknowledged: int
    """The release that was acknowledged when it was sent."""
    leaving: bool = False
    """The lease was checked for the last time; the response is on its way out."""


class Protocol(RuleBasedStateMachine):
    """What is acknowledged is taken as said at the first moment at which the coordinator would say
    it, so that every later answer is held to it."""

    @initialize(members=st.integers(1, 2), settled=st.booleans())
    def begin(self, members: int, settled: bool) -> None:
        self.clock = Clock()
        self.book = Book()
        self.membership = Membership(0, terms=TERMS, clock=self.clock)
        self.replicas: list[Replica] = []
        self.messages: list[Message] = []
        self.requests: list[Request] = []
        self.born = 0
        self.acknowledged = 0
        self.stopped = False
        for _ in range(members):
            self.join(prompt=True)
        if settled:
            self.time_passes(TERMS.seconds, beating=True)

    # -- replicas come and go

    @precondition(lambda self: len(self.replicas) < MOST_REPLICAS)
    @rule(prompt=st.booleans())
    def join(self, prompt: bool) -> None:
        replica = Replica(f"r{self.born}", self.book, self.clock)
        self.born += 1
        self.membership.register(replica.name)
        self.replicas.append(replica)
        if prompt:
            replica.catch_up()
            self._round_trip(replica)

    @precondition(lambda self: len(self.replicas) > 1)
    @rule(how=st.sampled_from(["killed", "stopped", "stopped, known later"]))
    def go(self, how: str) -> None:
        """The oldest one. Killed, its responses are lost with it, and what it sent before is on its
        way. Stopped, it says so, and its threads may still be in the middle of something."""
        replica = self.replicas[0]
        if how == "killed" or replica.ended:
            self.replicas.remove(replica)
            self.requests = [each for each in self.requests if each.replica is not replica]
        else:
            replica.lease.end()
            replica.ended = True
            self._send(Message(replica), steps=how == "stopped")

    # -- what is sent, and may be slow or lost

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), steps=st.sampled_from([0, 1, 1, 2]))
    def beat(self, data: st.DataObject, steps: int) -> None:
        """A heartbeat that is slow, or whose reply is, or that is there and back at once."""
        replica = self._one(data, self.replicas)
        self._send(Message(replica, replica.lease.beat()), steps)

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def a_slow_message_arrives(self, data: st.DataObject) -> None:
        self._move(self._one(data, self.messages))

    def _round_trip(self, replica: Replica) -> None:
        self._send(Message(replica, replica.lease.beat()), steps=2)

    def _send(self, message: Message, steps: int) -> None:
        self.messages.append(message)
        for _ in range(steps):
            self._move(message)
        del self.messages[:-MOST_MESSAGES]  # lost

    def _move(self, message: Message) -> None:
        """One step: to the coordinator, as in `Coordinator.heartbeat`, or back again."""
        beat, replica = message.beat, message.replica
        if beat is None:
            self.membership.leave(replica.name)
        elif message.pulse is None:
            extended = self.membership.heartbeat(
                replica.name, beat.running, silent=beat.silent, beat=beat.number
            )
            message.pulse = Pulse(self.membership.committed, TERMS.seconds if extended else 0.0)
            return
        else:
            replica.lease.take(beat, message.pulse)
        self.messages.remove(message)

    # -- what replicas do

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), does=st.sampled_from(["looks and acts", "acts, then looks", "halts"]))
    def follow(self, data: st.DataObject, does: str) -> None:
        """A replica may be slow to act on what it read in the ledger. To stop, the coordinator's
        word is enough."""
        replica = self._one(data, self.replicas)
        if does == "halts":
            if self.membership.suspended:
                replica.lease.halt()
            return
        if does == "looks and acts":
            replica.read = self.book
        replica.catch_up()
        replica.read = self.book

    @precondition(lambda self: any(replica.slot.active for replica in self.replicas))
    @rule(data=st.data(), lot=st.sampled_from([0.0, 1.0]))
    def ask(self, data: st.DataObject, lot: float) -> None:
        """A request is sent and its batch begins. Whether the lease is out isn't looked at: the
        look can be as old as a freeze is long."""
        replica = self._one(data, [each for each in self.replicas if each.slot.active])
        ticket = Ticket(replica.slot)
        (ready,) = replica.slot.pin([Wish(ticket, lot)])
        self.requests.append(Request(replica, ticket, ready, self.acknowledged))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), prompt=st.booleans())
    def answer(self, data: st.DataObject, prompt: bool) -> None:
        """It is computed. The lease is checked once more, then the response leaves."""
        request = self._one(data, self.requests)
        if not request.leaving and request.replica.may_answer:
            assert not self.stopped
            self._holds(request.ready, request.acknowledged)
            request.leaving = True
            if not prompt:
                return
        request.ticket.close()
        self.requests.remove(request)

    # -- what is written into the ledger, and who hears of it

    @rule(data=st.data(), told=TOLD, heard=HEARD)
    def activate(self, data: st.DataObject, told: Told, heard: Heard) -> None:
        """A new release, or one that was defined before; it may be the one that is on trial."""
        book = self.book if self.book.fit else self.book.defining()
        self._write(replace(book, active=self._one(data, book.fit), trial=None), told, heard)

    @rule(data=st.data(), others=st.booleans(), told=TOLD, heard=HEARD)
    def begin_or_end_a_trial(
        self, data: st.DataObject, others: bool, told: Told, heard: Heard
    ) -> None:
        book = self.book
        if book.trial is not None:
            book = replace(book, trial=None)
        else:
            book = book.defining().defining() if others else book.defining()
            book = replace(book, trial=self._one(data, book.fit))
        self._write(book, told, heard)

    @rule(told=TOLD, heard=HEARD)
    def suspend_or_resume(self, told: Told, heard: Heard) -> None:
        self.stopped = False
        self._write(replace(self.book, suspended=not self.book.suspended), told, heard)

    def _write(self, book: Book, told: Told, heard: Heard) -> None:
        self.book = book
        if told == "at once":
            self.the_coordinator_takes_note()
        elif told == "by a restart":
            self.membership = Membership(
                book.active, terms=TERMS, clock=self.clock, suspended=book.suspended
            )
        for replica in self.replicas if heard != "by nobody" else []:
            replica.read = book
            replica.catch_up()
            if heard == "and said so":
                self._round_trip(replica)

    @precondition(lambda self: self._behind)
    @rule()
    def the_coordinator_takes_note(self) -> None:
        if self.book.active > self.membership.committed:
            self.membership.commit(self.book.active)
        self.membership.suspend(self.book.suspended)

    @property
    def _behind(self) -> bool:
        known = self.membership.committed, self.membership.suspended
        return known != (self.book.active, self.book.suspended)

    @rule(seconds=st.sampled_from([0.4, 0.6, 4.0, 7.4, 8.1]), beating=st.booleans())
    def time_passes(self, seconds: float, beating: bool) -> None:
        self.clock.now += seconds
        self.membership.drop_silent(TERMS.seconds * 4)
        for replica in self.replicas if beating else []:
            self._round_trip(replica)

    # -- what is promised

    @invariant()
    def nobody_answers_from_what_is_older_than_the_acknowledged(self) -> None:
        self._acknowledge()
        for replica in self.replicas:
            if replica.may_answer:
                assert not replica.ended, replica.name
                assert not self.stopped, replica.name
                for lot in (0.0, 1.0):
                    self._holds(replica.answering(lot), self.acknowledged)

    @invariant()
    def nothing_that_were_written_now_would_be_acknowledged_too_early(self) -> None:
        """Whoever doesn't hear of it answers until its lease is out."""
        answering = [each.lease.left for each in self.replicas if each.may_answer]
        if not answering:
            return
        membership, clock = copy.deepcopy((self.membership, self.clock))
        number = max(self.book.releases) + 1
        membership.commit(number)
        membership.suspend(True)
        clock.now += max(answering) - 0.001
        assert not membership.acknowledged(number)
        assert not membership.quiet

    @invariant()
    def what_a_replica_says_of_itself_is_true(self) -> None:
        for request in self.requests:
            lease = request.replica.lease
            assert request.ready.number >= lease.running, "confirmed, and not drained"
            assert not (request.leaving and lease.silent), "silent, and not drained"

    def _acknowledge(self) -> None:
        membership = self.membership
        said = [n for n in range(membership.committed + 1) if membership.acknowledged(n)]
        self.acknowledged = max([self.acknowledged, *said])
        self.stopped = self.stopped or (membership.quiet and self.book.suspended)

    def _holds(self, ready: ReadyRelease, acknowledged: int) -> None:
        assert ready.number >= acknowledged
        assert ready.guard >= self.book.releases[acknowledged].forgets

    def _one(self, data: st.DataObject, things: Sequence[T]) -> T:
        return things[0] if len(things) == 1 else data.draw(st.sampled_from(things))


Protocol.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestProtocol = Protocol.TestCase
