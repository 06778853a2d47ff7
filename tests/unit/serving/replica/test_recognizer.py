"""One whole replica: what it answers, from which release, and when it refuses.

Its backbone is tiny and real, and so are its coordinator, its monitor and the signed ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.metrics_core import Metric
from torch import Tensor

from serving.api.routes.answering import begun
from serving.monitoring.tally import Counts, Targets, stack_name
from serving.replica import recognizer as module
from serving.replica.admission import (
    AskedError,
    Call,
    DeadlineError,
    OtherReleaseError,
    StoppingError,
)
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.prediction import Prediction, Scores
from serving.replica.recognizer import Recognizer
from serving.replica.slot import ReadyRelease, Ticket
from tests.unit.serving.in_process import LocalCoordinator, LocalMonitor
from tests.unit.serving.small_server import (
    LEASE,
    SHORT_LEASE,
    SmallServer,
    image_of,
    predict,
    until,
)

MakeServer = Callable[..., SmallServer]


def labels(prediction: Prediction) -> list[str]:
    return [guess.label for guess in prediction.guesses]


def value(families: list[Metric], name: str) -> float:
    return sum(s.value for family in families for s in family.samples if s.name == name)


def counted(replica: Recognizer, name: str) -> float:
    return value(replica.metrics.families(), name)


@pytest.fixture
def server(small_server: MakeServer) -> SmallServer:
    return small_server()


@contextlib.contextmanager
def without_coordinator(server: SmallServer, replica: Recognizer) -> Iterator[None]:
    """The coordinator is dead, and the replica's lease has run out."""
    server.coordinator.kill()
    until(lambda: replica.member.lease_left <= 0)
    yield
    if not server.coordinator.alive:
        server.coordinator.start()


def test_an_image_is_named_by_the_release_that_is_active_when_it_starts(
    server: SmallServer,
) -> None:
    server.mask("bo")
    replica = server.replica()
    found = predict(replica, "cy")
    assert (found.release, found.parent) == (1, 0)
    assert labels(found)[0] == "cy"
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1.0, abs=1e-4)
    assert {"decode", "queue", "forward"} == set(found.stages)
    assert found.before_mask is None


def test_a_mask_that_was_acknowledged_is_on_every_answer_and_only_an_auditor_sees_beneath(
    server: SmallServer,
) -> None:
    replica = server.replica()
    before = predict(replica, "zoe")
    assert (before.release, labels(before)[0]) == (0, "zoe")
    number = server.mask("zoe")
    after = predict(replica, "zoe")
    assert after.release == number
    assert sorted(labels(after)) == ["bo", "cy", "dee"]
    assert after.before_mask is None
    audited = predict(replica, "zoe", auditing=True)
    assert labels(audited) == labels(after)
    assert audited.before_mask is not None
    assert audited.before_mask[0].label == "zoe"


def test_a_replica_whose_lease_has_run_out_answers_nothing_until_it_has_one_again(
    small_server: MakeServer,
) -> None:
    server = small_server(lease=SHORT_LEASE)
    replica = server.replica()
    with without_coordinator(server, replica):
        started = time.monotonic()
        with pytest.raises(NotCurrentError, match="lease has run out"):
            predict(replica, "cy")
        assert time.monotonic() - started >= LEASE["patience"]
    until(lambda: replica.member.lease_left > 0)
    assert predict(replica, "cy").release == 0


def test_a_request_waits_a_moment_for_a_lease(small_server: MakeServer) -> None:
    server = small_server(lease={**SHORT_LEASE, "patience": 20.0})
    replica = server.replica()

    async def ask() -> Prediction:
        with begun(replica) as call:
            image = image_of(server.settings, "cy")
            asked = asyncio.create_task(replica.predict(image, call, top_k=1))
            done, _ = await asyncio.wait([asked], timeout=0.2)
            assert not done
            await asyncio.to_thread(server.coordinator.start)
            return await asked

    with without_coordinator(server, replica):
        assert asyncio.run(ask()).release == 0


def test_an_answer_that_was_computed_is_not_sent_without_a_lease(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is looked at again just before the response leaves."""
    replica = server.replica()
    compute = replica._forward

    def too_slow(ready: ReadyRelease, images: list[Tensor], embed: bool) -> Scores:
        scores = compute(ready, images, embed)
        replica.member.stop()
        return scores

    monkeypatch.setattr(replica, "_forward", too_slow)
    with pytest.raises(NotCurrentError):
        predict(replica, "cy")
    assert counted(replica, "lethe_images_total") == 1


def test_while_serving_is_suspended_nobody_waits_and_nothing_is_answered(
    small_server: MakeServer,
) -> None:
    server = small_server(lease={**LEASE, "patience": 20.0})
    replica = server.replica()
    coordinator = LocalCoordinator(server.coordinator.handle)
    coordinator.suspend(server.author())
    started = time.monotonic()
    with pytest.raises(SuspendedError):
        predict(replica, "cy")
    assert time.monotonic() - started < 10
    coordinator.resume(server.author())
    assert predict(replica, "cy").release == 0


@pytest.mark.parametrize("why", ["the deadline passed", "the client is gone"])
def test_what_nobody_waits_for_is_not_computed(server: SmallServer, why: str) -> None:
    replica = server.replica()

    async def ask() -> None:
        ticket = Ticket(replica.slot)
        deadline = asyncio.get_running_loop().time() + (0.5 if why == "the deadline passed" else 9)
        call = Call(uuid.uuid4().hex, ticket, deadline)
        image = await replica.decode(image_of(server.settings, "cy"), call)
        if why == "the deadline passed":
            await asyncio.sleep(0.6)
        else:
            ticket.close()
        await replica.score(image.unsqueeze(0), call)

    with pytest.raises(DeadlineError):
        asyncio.run(ask())
    assert counted(replica, "lethe_images_skipped_total") == 1
    assert counted(replica, "lethe_images_total") == 0


def test_an_image_without_time_left_is_not_even_decoded(server: SmallServer) -> None:
    replica = server.replica()

    async def ask() -> None:
        call = Call("request-1", Ticket(replica.slot), asyncio.get_running_loop().time())
        await replica.predict(b"no image", call, top_k=1)

    with pytest.raises(DeadlineError):
        asyncio.run(ask())
    assert counted(replica, "lethe_images_skipped_total") == 1


def test_whoever_asks_for_a_least_release_is_answered_by_no_older_one(
    server: SmallServer,
) -> None:
    replica = server.replica()
    number = server.mask("zoe")
    assert predict(replica, "cy", min_release=number).release == number
    with pytest.raises(NotCurrentError, match=f"release {number + 1} is not active yet"):
        predict(replica, "cy", min_release=number + 1)
    assert predict(replica, "cy").release == number


def test_a_least_release_that_the_replica_was_not_told_of_is_read_from_the_ledger(
    small_server: MakeServer,
) -> None:
    server = small_server(lease={**LEASE, "seconds": 600.0})
    replica = server.replica()
    number = server.activate("guard", server.request("zoe"))
    assert predict(replica, "zoe").release == 0, "nobody has told it"
    found = predict(replica, "zoe", min_release=number)
    assert found.release == number
    assert "zoe" not in labels(found)


def test_who_names_a_release_is_answered_by_that_one_or_by_none(server: SmallServer) -> None:
    replica = server.replica()
    number = server.mask("zoe")
    assert predict(replica, "cy", release=number).release == number
    with pytest.raises(OtherReleaseError, match=f"release {number} does"):
        predict(replica, "cy", release=0)


def test_an_auditor_is_answered_by_any_release_under_the_mask_of_now(server: SmallServer) -> None:
    replica = server.replica()
    adapted = server.forget("bo")
    masked = server.mask("zoe")
    newest = predict(replica, "cy", auditing=True, release=masked)
    bare = predict(replica, "zoe", auditing=True, release=0)
    assert (newest.release, bare.release, bare.parent) == (masked, 0, 0)
    assert sorted(labels(bare)) == ["cy", "dee"], "release 0 itself masked nobody"
    assert bare.before_mask is not None
    assert bare.before_mask[0].label == "zoe"
    # Another release's weights, not another name for the active one's.
    of_adapter = predict(replica, "cy", auditing=True, release=adapted)
    of_bare = predict(replica, "cy", auditing=True, release=0)
    assert of_adapter.before_mask == newest.before_mask
    assert of_bare.before_mask != newest.before_mask
    with pytest.raises(AskedError, match="no release 99") as unknown:
        predict(replica, "cy", auditing=True, release=99)
    assert unknown.value.status == 404
    assert predict(replica, "cy").release == masked, "a pin is no swap"


def test_a_release_that_can_not_be_built_for_an_auditor_says_so_and_changes_nothing(
    server: SmallServer,
) -> None:
    first = server.replica()
    adapted = server.forget("bo")
    rolled = server.roll_back(0)
    server.stop_replica(first)
    server.weights_of(*server.state.releases[adapted].adapters).write_bytes(b"damaged")
    replica = server.replica()
    with pytest.raises(AskedError, match=f"release {adapted} can't be built") as damaged:
        predict(replica, "cy", auditing=True, release=adapted)
    assert damaged.value.status == 409
    assert predict(replica, "cy").release == rolled


def test_what_an_auditor_asks_is_no_traffic(small_server: MakeServer) -> None:
    server = small_server(monitor={"share": 1.0})
    replica = server.replica()
    active = server.forget("bo")
    predict(replica, "bo", auditing=True, release=0)
    predict(replica, "bo", auditing=True, release=active)
    assert counted(replica, "lethe_emissions_total") == 0
    assert replica.shadow.counts() == {}
    predict(replica, "bo")
    assert counted(replica, "lethe_emissions_total") == 1, "a small adapter forgets nothing"
    until(lambda: bool(replica.shadow.counts()))


def test_a_share_of_the_requests_is_answered_by_the_release_on_trial(server: SmallServer) -> None:
    replica = server.replica()
    masked = server.mask("bo")
    tried = server.try_out("zoe", percent=50)
    until(lambda: replica.slot.trial is not None)
    found = [predict(replica, "cy").release for _ in range(40)]
    assert set(found) == {masked + 1, tried}
    assert 8 <= found.count(tried) <= 32
    # Who names the release that serves is not on trial.
    named = {predict(replica, "cy", release=masked + 1).release for _ in range(10)}
    assert named == {masked + 1}


def test_a_snapshot_says_what_the_replica_serves_and_what_it_counted(
    small_server: MakeServer,
) -> None:
    server = small_server(monitor={"share": 1.0, "leak_target": 0.03}, replicas=3)
    report = {"acc_f_after": 0.2, "acc_r_before": 0.9, "acc_r_after": 0.8}
    replica = server.replica()
    number = server.forget("bo", {name: {"value": v, "n": 9} for name, v in report.items()})
    server.mask("zoe")
    for name in ("bo", "cy", "dee"):
        predict(replica, name)
    (adapter,) = server.state.releases[number].adapters
    until(lambda: sum(c.matches + c.retained for c in replica.shadow.counts().values()) == 3)
    snapshot = replica.snapshot()
    assert snapshot is not None
    assert snapshot.release == server.state.active
    assert snapshot.stack == stack_name((adapter,))
    assert snapshot.counts == {snapshot.stack: Counts(matches=1, leaks=1, retained=2)}
    # What the report found where that is more than the settings' limit, else the limit.
    assert snapshot.targets == Targets(leak=0.2, drift=pytest.approx(0.1))
    assert (snapshot.expected, snapshot.forgotten, snapshot.trial) == (3, 1, None)
    assert snapshot.posture.in_force == "shadow"
    shown = {
        "lethe_release": snapshot.release,
        "lethe_guard_size": 2,
        "lethe_active_groups": 1,
        "lethe_images_total": 3,
        "lethe_emissions_total": 1,
        "lethe_shadow_samples_total": 3,
        "lethe_swaps_total": 4,  # the start's too
    }
    assert {name: value(snapshot.families, name) for name in shown} == shown
    # All but the confirmation, perhaps, which changes nothing that it serves.
    assert value(snapshot.families, "lethe_registry_seq") >= server.state.seq - 1
    assert 0 < value(snapshot.families, "lethe_lease_remaining_seconds") <= LEASE["seconds"]


def test_numbers_are_pushed_all_the_time_also_after_the_monitor_was_away(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUSH_S", 0.05)
    replica = server.replica()

    def heard() -> bool:
        page = LocalMonitor(server.monitor.handle).page(None, timeout=5)
        return b"\nlethe_replicas 1.0" in page

    until(heard)
    server.monitor.kill()
    time.sleep(0.2)
    server.monitor.start()  # it knows of no replica
    until(heard)
    server.stop_replica(replica)
    server.monitor.kill()
    server.monitor.start()
    time.sleep(0.2)
    assert not heard(), "who has gone pushes no more"


def test_a_replica_that_is_to_stop_finishes_what_it_has_and_lets_nothing_in(
    server: SmallServer,
) -> None:
    replica = server.replica()
    order: list[str] = []

    async def stop() -> None:
        with begun(replica) as call:
            draining = asyncio.create_task(replica.drain(notice=0.1, patience=10))
            await asyncio.sleep(0.05)
            with begun(replica):
                order.append("let in, in time")
            while not replica.admission.stopping:
                await asyncio.sleep(0.01)
            with pytest.raises(StoppingError), begun(replica):
                pass
            assert not draining.done()
            found = await replica.predict(image_of(server.settings, "cy"), call, top_k=1)
            order.append(found.guesses[0].label)
        assert await draining
        order.append("drained")

    asyncio.run(stop())
    assert order == ["let in, in time", "cy", "drained"]


def test_a_stop_does_not_wait_for_ever_for_what_is_in_flight(server: SmallServer) -> None:
    replica = server.replica()

    async def stop() -> bool:
        with begun(replica):
            return await replica.drain(notice=0, patience=0.1)

    assert not asyncio.run(stop())


def test_a_replica_that_has_gone_holds_up_no_commit(server: SmallServer) -> None:
    replica, other = server.replica(), server.replica()
    server.mask("bo")
    server.stop_replica(replica)
    with pytest.raises(NotCurrentError):
        predict(replica, "cy")
    members = LocalCoordinator(server.coordinator.handle).members()
    assert set(members) == {other.name}


def test_a_replica_that_can_not_follow_the_ledger_stops_serving_and_asks_to_be_replaced(
    small_server: MakeServer,
) -> None:
    server = small_server(lease={**SHORT_LEASE, "patience": 0.0})
    replica = server.replica()
    server.mask("bo")
    replica.check_health()
    (job,) = server.state.jobs.values()
    weights = server.weights_of(server.record_adapter(job).id)
    good = weights.read_bytes()
    weights.write_bytes(b"damaged")
    number = server.activate("adapter", job)
    until(lambda: replica.member.lease_left <= 0)
    with pytest.raises(NotCurrentError, match="lease has run out"):
        predict(replica, "cy")

    def stuck() -> bool:
        try:
            replica.check_health()
        except NotCurrentError as error:
            return "stuck" in str(error)
        return False

    until(stuck)
    assert counted(replica, "lethe_release_failures_total") >= 1
    weights.write_bytes(good)
    until(lambda: replica.member.lease_left > 0)
    assert predict(replica, "cy").release == number
    until(lambda: not stuck())
