"""What the forget worker makes of jobs that stand in the ledger, and how it goes on after failures.

It trains for real, on a tiny backbone, with the trainer, the coordinator and the replicas that it
would have.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import NotFoundError
from registry.fold.state import Job
from registry.publish.declarations import restore_subjects
from registry.publish.jobs import refuse_job, retry_job
from serving.config.home import open_subjects, signer
from serving.config.settings import ForgetSettings
from serving.control import forget_worker
from serving.control.forget_worker import LONGEST_RETRY_S, RETRY_S, ForgetWorker, retry_after
from serving.coordination.jobs import CANCELLED, adopted_release, provisional_release
from serving.monitoring.messages import OnTrial, Snapshot
from serving.monitoring.tally import Counts, Targets, stack_name
from tests.unit.serving.in_process import LocalCoordinator, LocalMonitor
from tests.unit.serving.small_server import IDLE, LENIENT, SmallServer, predict, until

MakeServer = Callable[..., SmallServer]
TRAINED = {"select_steps": 20, "refit_steps": 120}
"""Enough to forget one stripe."""
LONG = {**IDLE, "select_steps": 100_000}
STRICT = {**LENIENT, "acc_f": 0.01}


@pytest.fixture
def server(small_server: MakeServer) -> SmallServer:
    return small_server()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures and verdicts follow each other at once."""
    monkeypatch.setattr(forget_worker, "RETRY_S", 0.01)
    monkeypatch.setattr(forget_worker, "TRIAL_POLL_S", 0.05)


def job_of(server: SmallServer, job: Job) -> Job:
    return server.state.jobs[job.id]


def state_of(server: SmallServer, job: Job) -> str:
    return job_of(server, job).state


def is_refused(server: SmallServer, job: Job, stage: str) -> bool:
    refusal = job_of(server, job).refusal
    return state_of(server, job) == "refused" and refusal is not None and refusal.stage == stage


def cancel(server: SmallServer, job: Job, worker: ForgetWorker) -> None:
    """As control does."""
    refuse_job(
        server.ledger,
        signer(server.home, "publisher"),
        job=job.id,
        stage=CANCELLED,
        detail="by mistake",
        report=None,
        actor="ops",
        reason="a test",
        request_id=f"cancel {job.id}",
    )
    worker.cancel(job.id)


def trainings(worker: ForgetWorker) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for family in worker.metrics.families()
        for sample in family.samples
        if sample.name == "lethe_trainings_total"
    }


def test_a_job_is_masked_then_trained_then_served_and_its_report_says_what_was_measured(
    small_server: MakeServer,
) -> None:
    server = small_server(forget={"train": TRAINED, "gates": LENIENT})
    replica = server.replica()
    job = server.request("zoe")
    worker = server.worker()
    seen: list[dict[str, object]] = []

    def done() -> bool:
        seen.append(dict(worker.training.get(job.id, {})))
        return state_of(server, job) == "done"

    until(done)
    state = server.state
    kinds = [
        (release.kind, release.activated_at is not None)
        for release in map(state.releases.__getitem__, (1, 2))
    ]
    assert kinds == [("guard", True), ("adapter", True)]
    assert state.confirmed == state.active == adopted_release(state, job.id) == 2
    assert state.subjects_erased_by_weights(2) == state.erasing == set(job.subjects)
    entry = state.adapters[state.jobs[job.id].adapter or ""]
    report = json.loads(server.ledger.get_blob(entry.report))
    assert report["passed"]
    assert report["acc_f_before"]["value"] > report["acc_f_after"]["value"]
    assert "zoe" not in json.dumps(report)
    # The replicas serve what was trained, and an auditor sees that the weights have changed.
    found = predict(replica, "zoe", auditing=True)
    assert found.release == 2
    assert found.before_mask != predict(replica, "zoe", auditing=True, release=0).before_mask
    assert trainings(worker) == {"accepted": 1, "refused": 0, "failed": 0}
    assert any(progress for progress in seen)
    assert worker.training == {}


def test_a_refused_training_leaves_the_mask_and_the_next_job_is_trained_as_if_it_had_not_been(
    small_server: MakeServer,
) -> None:
    server = small_server(forget={"train": IDLE, "gates": STRICT})
    replica = server.replica()
    refused = server.request("zoe")
    worker = server.worker()
    until(lambda: is_refused(server, refused, "gates"))
    refusal = job_of(server, refused).refusal
    assert refusal is not None
    assert refusal.detail.startswith("acc_f_weights is ")
    assert "zoe" not in refusal.detail
    assert json.loads(server.ledger.get_blob(refusal.report or ""))["passed"] is False
    assert server.state.active_release.guard == set(refused.subjects)
    assert server.state.active_release.adapters == ()
    assert "zoe" not in [guess.label for guess in predict(replica, "zoe").guesses]
    assert trainings(worker) == {"accepted": 0, "refused": 1, "failed": 0}
    server.restart_trainer(forget=ForgetSettings(train=IDLE, gates=LENIENT))
    other = server.request("bo")
    worker.wake()
    until(lambda: state_of(server, other) == "done")
    assert server.state.active_release.guard == {*refused.subjects, *other.subjects}
    entry = server.state.adapters[job_of(server, other).adapter or ""]
    assert (entry.stack, entry.subjects) == ((), other.subjects)


def test_a_cancelled_training_ends_and_leaves_no_adapter(small_server: MakeServer) -> None:
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    server.replica()
    job = server.request("zoe")
    worker = server.worker()
    until(lambda: "step" in str(worker.training.get(job.id)))
    cancel(server, job, worker)
    until(lambda: server.trainer.actor.progress() == {} and not worker.training)
    assert server.state.adapters == {}
    assert is_refused(server, job, CANCELLED)
    assert server.state.active_release.guard == set(job.subjects)
    assert sum(trainings(worker).values()) == 0, "it is neither a success nor a failure"


@pytest.mark.parametrize("what", ["cancelled", "restored", "cancelled and retried"])
def test_what_was_trained_for_a_job_that_is_another_by_now_is_not_recorded(
    server: SmallServer, what: str
) -> None:
    server.replica()
    job = server.request("zoe")
    with server.accepting:  # as control holds it while a command changes who is under erasure
        worker = server.worker()
        until(lambda: trainings(worker)["accepted"] == 1)
        said = {"actor": "ops", "reason": "a test"}
        operator = signer(server.home, "operator")
        if what == "restored":
            restore_subjects(
                server.ledger, operator, subjects=job.subjects, request_id="restore", **said
            )
        else:
            cancel(server, job, worker)
        if what == "cancelled and retried":
            worker.forgive(job.id)
            retry_job(server.ledger, operator, job=job.id, request_id="retry", **said)
        before = server.state.seq
    if what == "cancelled and retried":
        until(lambda: state_of(server, job) == "done")
        assert trainings(worker)["accepted"] == 2
        assert [entry.seq > before for entry in server.state.adapters.values()] == [True]
    else:
        time.sleep(0.5)
        assert state_of(server, job) == {"cancelled": "refused"}.get(what, what)
        assert server.state.adapters == {}


def test_a_trainer_that_dies_is_waited_for_and_asked_again(
    small_server: MakeServer, quick: None
) -> None:
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    server.replica()
    job = server.request("zoe")
    worker = server.worker()
    until(lambda: server.trainer.actor.progress() != {})
    server.restart_trainer(forget=ForgetSettings(train=IDLE, gates=LENIENT))
    until(lambda: state_of(server, job) == "done")
    assert trainings(worker) == {"accepted": 1, "refused": 0, "failed": 1}


def test_a_job_whose_training_fails_again_and_again_is_given_up_and_the_next_goes_on(
    small_server: MakeServer, quick: None, tmp_path: Path
) -> None:
    server = small_server()
    server.replica()
    fewer = tmp_path / "images"
    shutil.copytree(server.settings.images, fewer)
    shutil.rmtree(fewer / "zoe")
    server.restart_trainer(images=str(fewer))
    lost, next_one = server.request("zoe"), server.request("bo")
    worker = server.worker()
    until(lambda: is_refused(server, lost, "training"))
    refusal = job_of(server, lost).refusal
    assert refusal is not None
    assert "the images of the data set can't be used" in refusal.detail
    assert "zoe" not in refusal.detail, "no record holds a class name"
    assert "zoe" in worker.problems[lost.id], "the operator is told"
    assert trainings(worker)["failed"] == server.settings.forget.attempts
    until(lambda: trainings(worker)["accepted"] + trainings(worker)["refused"] >= 1)
    assert server.state.active_release.guard == {*lost.subjects, *next_one.subjects}


def test_only_the_jobs_own_failures_count_against_it(
    small_server: MakeServer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that was away for a while, then one failed training, is one failure."""
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    server.replica()
    job = server.request("zoe")
    assert isinstance(server.home.registry, Path)
    entry = server.home.registry / "subjects" / f"{job.subjects[0]}.json"
    aside = entry.with_suffix(".aside")
    entry.rename(aside)
    with pytest.raises(NotFoundError):
        open_subjects(server.home).class_of(job.subjects[0])
    worker = server.worker()
    attempts = server.settings.forget.attempts
    with caplog.at_level(logging.ERROR):
        until(lambda: sum("held up" in line for line in caplog.messages) > attempts)
    assert state_of(server, job) == "requested"
    aside.rename(entry)
    until(lambda: server.trainer.actor.progress() != {})
    server.restart_trainer(forget=ForgetSettings(train=IDLE, gates=LENIENT))
    until(lambda: state_of(server, job) in ("done", "refused"))
    assert state_of(server, job) == "done"
    assert trainings(worker) == {"accepted": 1, "refused": 0, "failed": 1}


def test_a_worker_whose_ledger_fails_its_checks_goes_on_once_it_is_whole_again(
    server: SmallServer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    server.replica()
    job = server.request("zoe")
    assert isinstance(server.home.registry, Path)
    record = max((server.home.registry / "log").iterdir())
    good = record.read_bytes()
    record.chmod(0o600)
    record.write_bytes(good + b" ")
    server.worker()
    until(lambda: any("held up" in line for line in caplog.messages))
    record.write_bytes(good)
    until(lambda: state_of(server, job) == "done")


def test_a_closed_form_is_served_until_the_training_has_ended(small_server: MakeServer) -> None:
    forget = {"train": IDLE, "gates": {**LENIENT, "acc_r_drop": 1.0}, "closed_form": True}
    server = small_server(forget=forget)
    server.replica()
    job = server.request("zoe")
    worker = server.worker()
    until(lambda: state_of(server, job) == "done")
    assert worker.no_closed_form == {}
    state = server.state
    made = [state.releases[number] for number in (1, 2, 3)]
    assert [release.kind for release in made] == ["guard", "adapter", "adapter"]
    (bridge,), (trained,) = made[1].adapters, made[2].adapters
    assert (state.adapters[bridge].provisional, state.adapters[trained].provisional) == (
        True,
        False,
    )
    assert all(release.activated_at for release in made)
    assert provisional_release(state, job.id) is None, "it went when the trained one came"
    assert trainings(worker)["accepted"] == 1, "a closed form is no training"


def test_jobs_that_ask_for_it_are_one_training_and_one_release(server: SmallServer) -> None:
    server.replica()
    one, two = server.request("zoe", batch=True), server.request("bo", batch=True)
    worker = server.worker()
    until(lambda: state_of(server, one) == state_of(server, two) == "done")
    (entry,) = server.state.adapters.values()
    assert entry.jobs == (one.id, two.id)
    assert set(entry.subjects) == {*one.subjects, *two.subjects}
    assert trainings(worker)["accepted"] == 1


def test_what_is_refused_as_one_task_is_trained_alone_once(small_server: MakeServer) -> None:
    forget = {"train": IDLE, "gates": STRICT, "batch_wait_s": 0.0}
    server = small_server(forget=forget)
    server.replica()
    jobs = server.request("zoe", batch=True), server.request("bo", batch=True)
    worker = server.worker()
    until(lambda: all(is_refused(server, job, "gates") for job in jobs))
    for job in jobs:
        assert job_of(server, job).apart is not None
    assert trainings(worker)["refused"] == 3
    assert server.state.active_release.guard == {s for job in jobs for s in job.subjects}


def trial_snapshot(server: SmallServer, number: int, **counts: int) -> Snapshot:
    """What a replica that answers from the release on trial would push."""
    targets = Targets(leak=0.02, drift=0.05)
    stack = stack_name(server.state.releases[number].adapters)
    return Snapshot(
        families=[],
        taken=time.monotonic(),
        release=server.state.active,
        stack=stack_name(server.state.active_release.adapters),
        targets=targets,
        counts={stack: Counts(**counts)},
        expected=1,
        trial=OnTrial(number, stack, targets),
    )


@pytest.mark.parametrize("leaks", [0, 30])
def test_a_trial_is_judged_by_what_the_monitor_has_seen_of_it(
    small_server: MakeServer, quick: None, leaks: int
) -> None:
    server = small_server(canary={"samples": 50})
    server.replica()
    job = server.request("zoe", canary=10)
    server.worker()
    until(lambda: server.state.trial is not None)
    trial = server.state.trial
    assert trial is not None
    assert trial.percent == 10
    assert server.state.active == 1, "all others are answered by the release that masks it"
    found = trial_snapshot(server, trial.release, matches=30, leaks=leaks, retained=60)
    LocalMonitor(server.monitor.handle).push("another replica", found, timeout=5)
    if not leaks:
        until(lambda: state_of(server, job) == "done")
        assert server.state.active == trial.release
        return
    until(lambda: is_refused(server, job, "canary"))
    refusal = job_of(server, job).refusal
    assert refusal is not None
    assert server.state.releases[trial.release].returned == refusal.detail
    assert refusal.report is not None
    assert server.state.active == 1
    assert server.state.active_release.guard == set(job.subjects)


def test_a_trial_that_is_taken_off_for_a_cancellation_ends_as_cancelled(
    small_server: MakeServer, quick: None
) -> None:
    server = small_server()
    server.replica()
    job = server.request("zoe", canary=10)
    worker = server.worker()
    until(lambda: server.state.trial is not None)
    tried = server.state.last_release
    with server.accepting:  # as control holds it between the two steps of a cancellation
        coordinator = LocalCoordinator(server.coordinator.handle)
        assert coordinator.end_trial(tried, "the job was cancelled", server.author()) is None
        time.sleep(0.3)
        assert state_of(server, job) == "published", "the worker waits for the reason"
        cancel(server, job, worker)
    time.sleep(0.3)
    assert is_refused(server, job, CANCELLED)


@pytest.mark.parametrize("rounds", [10, 1023, 1024, 1025, 10**6])
def test_the_worker_waits_and_tries_again_however_often_it_failed(rounds: int) -> None:
    assert retry_after(rounds) == LONGEST_RETRY_S


def test_the_first_tries_come_sooner() -> None:
    waits = [retry_after(rounds) for rounds in range(1, 11)]
    assert waits[0] == 2 * RETRY_S
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
