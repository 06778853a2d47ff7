"""What the coordinator finishes by itself, on a real ledger. The test sends the members' calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.fold.state import Job
from registry.log.ledger import Ledger
from registry.publish.jobs import record_trained, refuse_job, request_forget
from registry.publish.releases import activate_release, publish_release
from serving.config.home import Home, open_ledger, prepare_home, signer
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Ack, Author, Declined, ReleaseState, Terms

TERMS = Terms(seconds=0.6, margin=0.1, heartbeat=0.05)
SAID = {"actor": "ops", "reason": "a test"}
AUTHOR = Author("ops", "a test", "request-9")
BACKBONE = f"sha256:{'b' * 64}"
ADA = "a" * 32


class Registry:
    """Writes records as other processes do: control, or a previous coordinator."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder, folder / "registry")
        prepare_home(self.home)
        self.ledger: Ledger = open_ledger(self.home)
        self.operator = signer(self.home, "operator")
        self.publisher = signer(self.home, "publisher")

    def forget(self, subject: str) -> Job:
        return request_forget(
            self.ledger,
            self.operator,
            subjects=[subject],
            backbone=BACKBONE,
            request_id=f"forget {subject}",
            **SAID,
        )

    def train(self, job: Job) -> None:
        record_trained(
            self.ledger,
            self.publisher,
            job=job.id,
            files={"adapter.bin": job.id.encode()},
            stack=self.ledger.refresh().stack_for(job.id),
            report=b"report",
            request_id=job.request_id,
            **SAID,
        )

    def cancel(self, job: Job) -> None:
        refuse_job(
            self.ledger,
            self.publisher,
            job=job.id,
            stage="cancelled",
            detail="by mistake",
            report=None,
            request_id="cancel",
            **SAID,
        )

    def activate_guard(self, job: Job) -> int:
        made = publish_release(
            self.ledger, self.publisher, kind="guard", job=job.id, request_id="guard", **SAID
        )
        activate_release(
            self.ledger, self.operator, release=made.number, request_id="guard", **SAID
        )
        return made.number

    @contextmanager
    def coordinator(self) -> Iterator[Coordinator]:
        coordinator = Coordinator(self.home.path, self.home.registry, TERMS)
        try:
            yield coordinator
        finally:
            coordinator._housekeeping.cancel()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


async def until(true: Callable[[], bool], *, seconds: float = 5.0) -> None:
    async def wait() -> None:
        while not true():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), seconds)


def test_an_activation_whose_outcome_was_not_known_is_acknowledged_all_the_same(
    registry: Registry,
) -> None:
    """The storage may fail after it stored the record. Then the release is active."""

    async def act() -> None:
        with registry.coordinator() as coordinator:
            await coordinator.register("a")
            number = registry.activate_guard(registry.forget(ADA))
            ack = await asyncio.wait_for(coordinator.acknowledge(number), 5)
            assert ack.release == number
            assert (await coordinator.members())["a"]["behind"]
        assert registry.ledger.refresh().confirmed == number

    asyncio.run(act())


@pytest.mark.parametrize("cancelled", [False, True])
def test_who_was_put_under_erasure_is_masked_though_nobody_asks_for_it(
    registry: Registry, cancelled: bool
) -> None:
    """Control died after the request was recorded, or the job was cancelled before its guard."""

    async def act() -> None:
        job = registry.forget(ADA)
        if cancelled:
            registry.cancel(job)
        with registry.coordinator():
            await until(lambda: registry.ledger.refresh().jobs[job.id].guarded)
        assert registry.ledger.state.active_release.guard == {ADA}
        assert registry.ledger.state.last_release == 1

    asyncio.run(act())


@pytest.mark.parametrize("why", ["members", "suspended"])
def test_no_release_is_defined_while_no_replica_could_build_it(
    registry: Registry, why: str
) -> None:
    """A caller that is declined retries often, and each try would leave a release in the ledger."""

    async def act() -> None:
        job = registry.forget(ADA)
        registry.activate_guard(job)
        registry.train(job)
        with registry.coordinator() as coordinator:
            if why == "suspended":
                await coordinator.suspend(AUTHOR)
            before = registry.ledger.refresh().last_release
            for _ in range(3):
                refusal = await coordinator.adopt(job.id, AUTHOR)
                assert isinstance(refusal, Declined)
                assert refusal.stage == why
            assert registry.ledger.refresh().last_release == before

    asyncio.run(act())


def test_a_problem_on_the_way_to_a_release_is_over_when_it_is_served(registry: Registry) -> None:
    async def act() -> None:
        with registry.coordinator() as coordinator:
            await coordinator.heartbeat("a", 0)
            asked = asyncio.create_task(coordinator.guard(registry.forget(ADA).id, AUTHOR))
            await until(lambda: coordinator._membership.committed == 1)
            await coordinator.prepared("a", ReleaseState(1, "fetched", "not fetched: disk"))
            seen = (await coordinator.members())["a"]
            assert seen["problem"] == "not fetched: disk"
            assert seen["behind"]
            await coordinator.heartbeat("a", 1)
            assert isinstance(await asked, Ack)
            assert (await coordinator.members())["a"] == {
                "release": 1,
                "behind": False,
                "stages": {"1": "active"},
                "problem": None,
            }

    asyncio.run(act())
