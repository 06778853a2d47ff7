"""One real member of a real coordinator: what it does when the coordinator or a release is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from forgetting.models.golden import golden_image
from serving.config.home import open_ledger, open_subjects
from serving.coordination.messages import Author, Terms
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.member import STUCK_LEASES, Member
from serving.replica.release_reader import ReleaseReader
from serving.replica.slot import Slot
from tests.unit.serving.in_process import LocalCoordinator
from tests.unit.serving.small_server import SmallServer

AUTHOR = Author("tester", "a test", "request-of-the-test")
WAIT_S = 30.0
START_S = 20.0


class Watched:
    """A member, its slot, and what it was heard to say of its swaps."""

    def __init__(self, server: SmallServer, *, skew: Callable[[], float] = lambda: 0.0) -> None:
        lease = server.settings.lease
        self.said: list[str] = []
        self.failed: list[str] = []
        golden = golden_image(server.backbone.spec.preprocess.input_size)
        self.slot = Slot(TorchEngine(server.backbone.model), golden)
        self.member = Member(
            "m",
            LocalCoordinator(server.coordinator.handle),
            slot=self.slot,
            reader=ReleaseReader(
                open_ledger(server.home), open_subjects(server.home), server.backbone
            ),
            terms=Terms(lease.seconds, lease.margin, lease.heartbeat),
            on_swap=lambda step, seconds: self.said.append(step),
            on_failure=self.failed.append,
            clock=lambda: time.monotonic() + skew(),
        )

    @property
    def serves(self) -> int:
        return -1 if self.slot.active is None else self.slot.active.number


@pytest.fixture
def server(small_server: Callable[..., SmallServer]) -> SmallServer:
    return small_server()


@pytest.fixture
def watched(server: SmallServer) -> Iterator[Watched]:
    made = Watched(server)
    yield made
    made.member.stop()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def test_a_member_waits_for_a_coordinator_that_is_away(
    server: SmallServer, watched: Watched
) -> None:
    server.coordinator.kill()
    back = threading.Timer(0.5, server.coordinator.start)
    back.start()
    watched.member.start(START_S)
    back.join()
    assert watched.serves == 0
    watched.member.check()


def test_a_member_whose_coordinator_stays_away_does_not_start(
    server: SmallServer, watched: Watched
) -> None:
    server.coordinator.kill()
    with pytest.raises(NotCurrentError, match="can't be reached"):
        watched.member.start(0.3)
    with pytest.raises(NotCurrentError):
        watched.member.check()


def test_a_member_that_starts_during_a_suspension_has_no_lease(
    server: SmallServer, watched: Watched
) -> None:
    LocalCoordinator(server.coordinator.handle).suspend(AUTHOR)
    watched.member.start(START_S)
    with pytest.raises(SuspendedError):
        watched.member.check()


def test_a_member_that_stops_has_ended_its_lease_before_it_says_so(
    server: SmallServer, watched: Watched
) -> None:
    watched.member.start(START_S)
    assert "m" in LocalCoordinator(server.coordinator.handle).members()
    watched.member.stop()
    assert watched.member.lease_left < 0
    assert "m" not in LocalCoordinator(server.coordinator.handle).members()


def test_a_release_that_is_not_active_is_not_waited_for(watched: Watched) -> None:
    watched.member.start(START_S)
    started = time.monotonic()
    with pytest.raises(NotCurrentError, match="release 7 is not active yet"):
        watched.member.catch_up_to(7, timeout=WAIT_S)
    assert time.monotonic() - started < WAIT_S / 2


def activate_what_cannot_be_built(server: SmallServer) -> int:
    """The number of an active release whose adapter has lost its file."""
    job = server.request("bo")
    server.activate("guard", job)
    entry = server.record_adapter(job)
    server.weights_of(entry.id).unlink()
    return server.activate("adapter", job)


def test_a_release_whose_file_is_gone_is_reported_and_the_lease_runs_out(
    server: SmallServer, watched: Watched
) -> None:
    watched.member.start(START_S)
    release = activate_what_cannot_be_built(server)
    wait_until(lambda: "failed" in watched.said and bool(watched.failed))
    assert watched.failed[0] == "fetched"
    assert watched.serves < release
    wait_until(lambda: watched.member.lease_left < 0)
    with pytest.raises(NotCurrentError):
        watched.member.check()
    with pytest.raises(NotCurrentError, match="can't reach release"):
        watched.member.catch_up_to(release, timeout=0.1)


def test_a_member_that_is_stuck_for_several_leases_asks_to_be_replaced(
    server: SmallServer,
) -> None:
    ahead = [0.0]
    watched = Watched(server, skew=lambda: ahead[0])
    watched.member.start(START_S)
    watched.member.check_following()
    activate_what_cannot_be_built(server)
    wait_until(lambda: watched.said.count("failed") > 1)  # so it has noted the first
    watched.member.check_following()
    ahead[0] = (STUCK_LEASES + 1) * server.settings.lease.seconds
    with pytest.raises(NotCurrentError, match="stuck"):
        watched.member.check_following()
    watched.member.stop()
