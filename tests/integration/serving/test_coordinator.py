"""The coordinator on a real ledger, with members that follow, lag, fail or stop answering."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, to_files
from forgetting.data.preprocess import Preprocess
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from registry.errors import IntegrityError
from registry.fold.state import Job
from registry.log.highwater import read_mark
from registry.log.ledger import Ledger
from registry.publish.declarations import record_suspension, restore_subjects
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release
from serving.config.home import Home, open_ledger, open_subjects, prepare_home, signer
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import (
    CONFIRMED,
    LEASE_EXPIRED,
    Ack,
    Author,
    Declined,
    Halt,
    ReleaseState,
    Resumption,
    Terms,
    TrialBegun,
    Wake,
)
from tests.integration.serving.members import Replica

TERMS = Terms(seconds=1.6, margin=0.2, heartbeat=0.1)
AUTHOR = Author("tester", "a test", "request-of-the-test")


@dataclass(frozen=True)
class Stage:
    home: Home
    ledger: Ledger
    backbone: Backbone

    def coordinator(self) -> Coordinator:
        return Coordinator(self.home.path, self.home.registry, TERMS)

    def request(self, name: str) -> Job:
        return request_forget(
            self.ledger,
            signer(self.home, "operator"),
            subjects=[open_subjects(self.home).assign(name)],
            backbone=self.backbone.fingerprint,
            actor="tester",
            reason="a test",
            request_id=f"forget-{name}",
        )

    def trained(self, job: Job, stack: tuple[str, ...]) -> str:
        entry = record_trained(
            self.ledger,
            signer(self.home, "publisher"),
            job=job.id,
            files=to_files(adapter_of(self.backbone, job.subjects, stack)),
            stack=stack,
            report=b"{}",
            actor="tester",
            reason="a test",
            request_id=f"train-{job.id}",
        )
        return entry.id

    async def live(self, replica: Replica, coordinator: Coordinator) -> None:
        await replica.live(coordinator, home=self.home, backbone=self.backbone, terms=TERMS)


def adapter_of(backbone: Backbone, subjects: Sequence[str], stack: tuple[str, ...]) -> Adapter:
    """An adapter that changes one linear of the backbone."""
    generator = torch.Generator().manual_seed(len(stack))
    a = torch.randn(2, 12, generator=generator)
    b = torch.randn(48, 2, generator=generator) / 100
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=stack,
        subjects=tuple(subjects),
        method="by hand",
        config={},
        seed=0,
        steps=1,
        data_digest="sha256:" + "0" * 64,
        code_version="0",
        groups_kept=1,
        groups_total=2,
    )
    return Adapter({"blocks.1.mlp.fc1": (a, b)}, facts)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, ("ada", "bo", "cy", "di"), preprocess)
    torch.manual_seed(0)
    return freeze(build_model(spec), spec)


@pytest.fixture
def stage(tmp_path: Path, backbone: Backbone) -> Stage:
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    return Stage(home, open_ledger(home), backbone)


async def until(true: Callable[[], bool], *, seconds: float = 10.0) -> None:
    async def wait() -> None:
        while not true():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), seconds)


def play(
    stage: Stage, replicas: list[Replica], act: Callable[[Coordinator], Coroutine[Any, Any, None]]
) -> None:
    """Run `act` on a coordinator whose members are `replicas`, after the grace of its start."""

    async def run() -> None:
        coordinator = stage.coordinator()
        lives = [asyncio.create_task(stage.live(replica, coordinator)) for replica in replicas]
        await asyncio.sleep(TERMS.seconds + 0.1)
        try:
            await asyncio.wait_for(act(coordinator), 60)
        finally:
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    asyncio.run(run())


def test_a_forget_is_guarded_adopted_and_rolled_back_with_its_guard(stage: Stage) -> None:
    replicas = [Replica("a"), Replica("b")]

    async def act(coordinator: Coordinator) -> None:
        job = stage.request("ada")
        guard = await coordinator.guard(job.id, AUTHOR)
        assert isinstance(guard, Ack)
        assert guard.members == {"a": CONFIRMED, "b": CONFIRMED}
        adapter = stage.trained(job, ())
        adopted = await coordinator.adopt(job.id, AUTHOR)
        assert isinstance(adopted, Ack)
        assert adopted.release == 2
        back = await coordinator.roll_back(1, AUTHOR)
        assert isinstance(back, Ack)
        state = stage.ledger.refresh()
        assert (state.active, state.confirmed) == (3, 3)
        assert state.releases[2].adapters == (adapter,)
        assert state.releases[3].adapters == ()
        assert state.releases[3].guard == frozenset(job.subjects)
        assert state.jobs[job.id].state == "done"

    play(stage, replicas, act)
    # For a release that only masks, members build nothing.
    assert [replica.built for replica in replicas] == [[2, 3], [2, 3]]


def test_a_release_that_one_member_cannot_build_is_not_activated(stage: Stage) -> None:
    async def act(coordinator: Coordinator) -> None:
        job = stage.request("ada")
        await coordinator.guard(job.id, AUTHOR)
        stage.trained(job, ())
        outcome = await coordinator.adopt(job.id, AUTHOR)
        assert isinstance(outcome, Declined)
        assert outcome.stage == "prepare"
        assert outcome.detail.startswith("b: not verified: ")
        assert "digest" in outcome.detail
        assert stage.ledger.refresh().active == 1

    play(stage, [Replica("a"), Replica("b", damaged=True)], act)


def test_an_adapter_of_another_stack_is_refused(stage: Stage) -> None:
    async def act(coordinator: Coordinator) -> None:
        first, second = stage.request("ada"), stage.request("bo")
        await coordinator.guard(first.id, AUTHOR)
        await coordinator.guard(second.id, AUTHOR)
        stage.trained(first, ())
        stage.trained(second, ())
        assert isinstance(await coordinator.adopt(first.id, AUTHOR), Ack)
        outcome = await coordinator.adopt(second.id, AUTHOR)
        assert isinstance(outcome, Declined)
        assert outcome.stage == "stack"

    play(stage, [Replica("a")], act)


def test_a_frozen_member_holds_the_acknowledgement_up_until_its_lease_is_out(
    stage: Stage,
) -> None:
    frozen = Replica("b")

    async def act(coordinator: Coordinator) -> None:
        job = stage.request("ada")
        frozen.frozen = True
        ack = await coordinator.guard(job.id, AUTHOR)
        assert isinstance(ack, Ack)
        assert ack.members == {"a": CONFIRMED, "b": LEASE_EXPIRED}
        assert frozen.cut_off
        assert 100 < ack.ms <= (TERMS.seconds + 0.5) * 1000

    play(stage, [Replica("a"), frozen], act)


def test_a_new_coordinator_acknowledges_what_the_old_one_activated(stage: Stage) -> None:
    job = stage.request("ada")
    release = publish_release(
        stage.ledger,
        signer(stage.home, "publisher"),
        kind="guard",
        job=job.id,
        actor="tester",
        reason="a test",
        request_id="r",
    )
    activate_release(
        stage.ledger,
        signer(stage.home, "operator"),
        release=release.number,
        actor="tester",
        reason="then the coordinator was killed",
        request_id="r",
    )

    async def act(coordinator: Coordinator) -> None:
        await coordinator.acknowledge(release.number)
        state = stage.ledger.refresh()
        assert (state.confirmed, state.jobs[job.id].guarded) == (1, True)

    play(stage, [Replica("a")], act)


def test_a_guard_is_not_held_up_by_a_release_that_is_being_built(stage: Stage) -> None:
    """The build ends after the guard was acknowledged, so its release is published again on top."""
    slow = Replica("a")

    async def act(coordinator: Coordinator) -> None:
        first, second = stage.request("ada"), stage.request("bo")
        await coordinator.guard(first.id, AUTHOR)
        stage.trained(first, ())
        built = asyncio.Event()
        report = coordinator.prepared

        async def late(member: str, state: ReleaseState) -> None:
            await built.wait()
            await report(member, state)

        coordinator.prepared = late  # type: ignore[method-assign]
        adopting = asyncio.create_task(coordinator.adopt(first.id, AUTHOR))
        await asyncio.sleep(0.2)
        # The member's own thread is blocked by its build, so the guard needs another one.
        other = asyncio.create_task(stage.live(Replica("b"), coordinator))
        await asyncio.sleep(0.2)
        guarding = asyncio.create_task(coordinator.guard(second.id, AUTHOR))
        for _ in range(100):
            await asyncio.sleep(0.05)
            if stage.ledger.refresh().active == 3:
                break
        assert stage.ledger.refresh().active == 3  # 1: first guard, 2: being built
        built.set()
        adopted, guard = await asyncio.gather(adopting, guarding)
        other.cancel()
        assert isinstance(adopted, Ack)
        assert isinstance(guard, Ack)
        state = stage.ledger.refresh()
        assert state.active == adopted.release > guard.release
        assert state.releases[adopted.release].guard == frozenset(
            (*first.subjects, *second.subjects)
        )

    play(stage, [slow], act)


def test_a_suspension_is_durable_and_acknowledged_when_nobody_serves(stage: Stage) -> None:
    replicas = [Replica("a"), Replica("b")]

    async def act(coordinator: Coordinator) -> None:
        halt = await coordinator.suspend(AUTHOR)
        assert isinstance(halt, Halt)
        assert halt.members == {"a": CONFIRMED, "b": CONFIRMED}
        assert stage.ledger.refresh().suspended
        again = await coordinator.suspend(AUTHOR)
        assert isinstance(again, Halt)
        given = len(replicas[0].leases)
        await asyncio.sleep(TERMS.heartbeat * 4)
        assert not any(replicas[0].leases[given:])
        # Without a replica, a command is accepted and masks; what must be built waits.
        job = stage.request("ada")
        assert isinstance(await coordinator.guard(job.id, AUTHOR), Ack)
        stage.trained(job, ())
        outcome = await coordinator.adopt(job.id, AUTHOR)
        assert isinstance(outcome, Declined)
        assert outcome.stage == "suspended"
        resumed = await coordinator.resume(AUTHOR)
        assert isinstance(resumed, Resumption)
        assert resumed.members == ["a", "b"]
        assert not stage.ledger.refresh().suspended
        assert isinstance(await coordinator.adopt(job.id, AUTHOR), Ack)

    play(stage, replicas, act)


def test_a_frozen_member_holds_a_suspension_up_until_its_lease_is_out(stage: Stage) -> None:
    frozen = Replica("b")

    async def act(coordinator: Coordinator) -> None:
        frozen.frozen = True
        halt = await coordinator.suspend(AUTHOR)
        assert isinstance(halt, Halt)
        assert halt.members == {"a": CONFIRMED, "b": LEASE_EXPIRED}
        assert frozen.cut_off
        assert 100 < halt.ms <= (TERMS.seconds + 0.5) * 1000

    play(stage, [Replica("a"), frozen], act)


def test_a_new_coordinator_finds_serving_suspended(stage: Stage) -> None:
    record_suspension(
        stage.ledger,
        signer(stage.home, "operator"),
        state="suspended",
        actor="tester",
        reason="then the coordinator was killed",
        request_id="r",
    )
    replica = Replica("a")

    async def act(coordinator: Coordinator) -> None:
        assert isinstance(await coordinator.suspend(AUTHOR), Halt)
        assert not any(replica.leases)

    play(stage, [replica], act)


def test_a_suspension_that_somebody_else_recorded_is_noticed(stage: Stage) -> None:
    async def act(coordinator: Coordinator) -> None:
        record_suspension(
            stage.ledger,
            signer(stage.home, "operator"),
            state="suspended",
            actor="tester",
            reason="by another process",
            request_id="r",
        )
        await until(lambda: replica.silent)

    replica = Replica("a")
    play(stage, [replica], act)


def restore(stage: Stage, job: Job) -> None:
    restore_subjects(
        stage.ledger,
        signer(stage.home, "operator"),
        subjects=job.subjects,
        actor="tester",
        reason="asked for it",
        request_id=f"restore-{job.id}",
    )


def test_who_was_restored_is_brought_back_and_the_others_stay_masked(stage: Stage) -> None:
    async def act(coordinator: Coordinator) -> None:
        first, second = stage.request("ada"), stage.request("bo")
        await coordinator.guard(first.id, AUTHOR)
        await coordinator.guard(second.id, AUTHOR)
        stage.trained(first, ())
        assert isinstance(await coordinator.adopt(first.id, AUTHOR), Ack)
        restore(stage, first)
        ack = await coordinator.bring_back(AUTHOR)
        assert isinstance(ack, Ack)
        state = stage.ledger.refresh()
        assert state.active == state.confirmed == ack.release
        assert state.active_release.adapters == ()
        assert state.active_release.guard == frozenset(second.subjects)
        # The second class was only masked, so a smaller mask is enough.
        restore(stage, second)
        assert isinstance(await coordinator.bring_back(AUTHOR), Ack)
        assert stage.ledger.refresh().active_release.kind == "guard"
        assert stage.ledger.state.active_release.guard == frozenset()

    play(stage, [Replica("a"), Replica("b")], act)


def test_a_new_coordinator_brings_back_who_was_restored_before_the_old_one_died(
    stage: Stage,
) -> None:
    job = stage.request("ada")

    async def die(coordinator: Coordinator) -> None:
        await coordinator.guard(job.id, AUTHOR)
        stage.trained(job, ())
        assert isinstance(await coordinator.adopt(job.id, AUTHOR), Ack)

    async def finish(_: Coordinator) -> None:
        for _ in range(100):
            await asyncio.sleep(0.05)
            state = stage.ledger.refresh()
            if state.active == state.confirmed and not state.active_release.guard:
                break
        assert state.active_release.guard == frozenset()
        assert state.active_release.adapters == ()
        assert state.confirmed == state.active

    play(stage, [Replica("a")], die)
    restore(stage, job)
    play(stage, [Replica("a")], finish)


def test_what_was_acknowledged_cannot_be_taken_back_by_an_older_copy(
    stage: Stage, tmp_path: Path
) -> None:
    job = stage.request("ada")
    shutil.copytree(stage.home.registry, tmp_path / "older")

    async def act(coordinator: Coordinator) -> None:
        assert isinstance(await coordinator.guard(job.id, AUTHOR), Ack)
        mark = read_mark(stage.home.highwater, stage.home.trust)
        assert mark is not None
        assert mark.seq == stage.ledger.refresh().seq

    play(stage, [Replica("a")], act)
    shutil.rmtree(stage.home.registry)
    shutil.copytree(tmp_path / "older", stage.home.registry)

    async def start() -> None:
        stage.coordinator()

    with pytest.raises(IntegrityError, match="older copy"):
        asyncio.run(start())


def test_a_canary_is_made_known_promoted_and_acknowledged(stage: Stage) -> None:
    a, b = Replica("a"), Replica("b")

    async def act(coordinator: Coordinator) -> None:
        job = stage.request("ada")
        await coordinator.guard(job.id, AUTHOR)
        stage.trained(job, ())
        begun = await coordinator.try_out(job.id, 10, AUTHOR)
        assert isinstance(begun, TrialBegun)
        await until(lambda: a.trial == b.trial == begun.release)
        state = stage.ledger.refresh()
        assert state.active == 1
        assert state.trial is not None
        assert (state.trial.release, a.trial, b.trial) == (2, 2, 2)
        assert a.built == b.built == [2]
        ack = await coordinator.promote(2, AUTHOR)
        assert isinstance(ack, Ack)
        assert set(ack.members.values()) == {CONFIRMED}
        await until(lambda: (a.trial, b.trial) == (0, 0))
        assert (a.serves, b.serves) == (2, 2)
        assert stage.ledger.refresh().confirmed == 2

    play(stage, [a, b], act)


def test_a_canary_that_is_taken_off_is_never_served_and_a_guard_ends_one_at_once(
    stage: Stage,
) -> None:
    replica = Replica("a")

    async def act(coordinator: Coordinator) -> None:
        first, second = stage.request("ada"), stage.request("bo")
        await coordinator.guard(first.id, AUTHOR)
        stage.trained(first, ())
        # Another class came under erasure, and is masked before a trial begins.
        begun = await coordinator.try_out(first.id, 10, AUTHOR)
        assert isinstance(begun, TrialBegun)
        await asyncio.sleep(0.1)
        ack = await coordinator.guard(second.id, AUTHOR)
        assert isinstance(ack, Ack)
        assert stage.ledger.refresh().trial is None
        gone = await coordinator.promote(begun.release, AUTHOR)
        assert isinstance(gone, Declined)
        assert gone.stage == "stack"
        again = await coordinator.try_out(first.id, 10, AUTHOR)
        assert isinstance(again, TrialBegun)
        assert again.release > ack.release
        guard = stage.ledger.refresh().releases[again.release].guard
        assert guard == stage.ledger.state.erasing
        assert await coordinator.end_trial(again.release, "it leaks", AUTHOR) is None
        assert await coordinator.end_trial(again.release, "it leaks", AUTHOR) is None
        await until(lambda: replica.trial == 0)
        state = stage.ledger.refresh()
        assert state.active == ack.release
        assert state.releases[again.release].returned == "it leaks"

    play(stage, [replica], act)


def test_a_restarted_coordinator_goes_on_with_the_trial_that_the_ledger_knows(
    stage: Stage,
) -> None:
    async def act(coordinator: Coordinator) -> None:
        job = stage.request("ada")
        await coordinator.guard(job.id, AUTHOR)
        stage.trained(job, ())
        assert isinstance(await coordinator.try_out(job.id, 10, AUTHOR), TrialBegun)
        successor = stage.coordinator()
        wake = await successor.follow("late", Wake(1, -1), 0.5)
        trial = stage.ledger.refresh().trial
        assert trial is not None
        assert wake.trial == trial.seq
        live = asyncio.create_task(stage.live(Replica("late"), successor))
        ack = await successor.promote(trial.release, AUTHOR)
        assert isinstance(ack, Ack)
        live.cancel()

    play(stage, [Replica("a")], act)
