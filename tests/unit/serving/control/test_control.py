"""What control answers to each command, and what the ledger and the replicas say by then.

Control is the real one, with the coordinator, the trainer and replicas that it would have on a tiny
backbone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from registry.publish.jobs import refuse_job
from registry.subjects.personal import images_of
from serving.config.home import open_ledger, open_private_store, open_subjects, signer
from serving.control import forget_worker
from serving.control.client import ControlClient
from serving.control.control import Control
from serving.control.messages import (
    Answer,
    ForgetRequest,
    Rejection,
    RestoreRequest,
    RetryRequest,
    RollbackRequest,
)
from serving.coordination import activation
from serving.coordination.messages import CONFIRMED, LEASE_EXPIRED
from serving.replica.lease import SuspendedError
from tests.unit.serving.in_process import Process
from tests.unit.serving.small_server import (
    IDLE,
    LENIENT,
    SHORT_LEASE,
    WAIT_S,
    SmallServer,
    image_of,
    predict,
    until,
)

MakeServer = Callable[..., SmallServer]
LONG = {**IDLE, "select_steps": 100_000}


class Desk:
    """An operator's side of control: each command is sent through the typed client."""

    def __init__(self, server: SmallServer, *, training: bool = False) -> None:
        """Without `training` the trainer is away, so that jobs stay as they are."""
        self.server = server
        self.process: Process[Control] = server.control()
        if not training:
            server.trainer.kill()
        self._control = ControlClient(self.process.handle)

    def forget(self, *classes: str, key: str | None = None, **options: Any) -> Answer:
        request = ForgetRequest(classes, **options)
        return _sent(self._control.forget(request, self.server.author(key)))

    def rollback(self, to: int, key: str | None = None) -> Answer:
        return _sent(self._control.rollback(RollbackRequest(to), self.server.author(key)))

    def restore(self, name: str | None, subject: str | None = None, key: str = "r") -> Answer:
        request = RestoreRequest(name, subject)
        return _sent(self._control.restore(request, self.server.author(key)))

    def cancel(self, job: str) -> Answer:
        return _sent(self._control.cancel(job, self.server.author()))

    def retry(self, job: str, key: str | None = None, **options: Any) -> Answer:
        return _sent(self._control.retry(RetryRequest(job, **options), self.server.author(key)))

    def suspend(self) -> Answer:
        return _sent(self._control.suspend(self.server.author()))

    def resume(self) -> Answer:
        return _sent(self._control.resume(self.server.author()))

    def job(self, job: str) -> Answer:
        return _sent(self._control.job(job))

    def state_of(self, job: str) -> str:
        return str(done(self.job(job))["state"])

    def status(self) -> dict[str, Any]:
        return _sent(self._control.status())

    def releases(self) -> list[dict[str, Any]]:
        return _sent(self._control.releases())

    def report(self, job: str) -> bytes | Rejection:
        return _sent(self._control.report(job))


def _sent(command: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(command)


def done(answer: Answer) -> dict[str, Any]:
    assert isinstance(answer, dict), answer
    return answer


def refused(answer: object, status: int, *words: str) -> Rejection:
    assert isinstance(answer, Rejection), answer
    assert answer.status == status, answer
    for each in words:
        assert each in f"{answer.detail} {answer.advice}", answer
    return answer


@pytest.fixture
def server(small_server: MakeServer) -> SmallServer:
    return small_server()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control waits only a moment for a coordinator that is away."""
    monkeypatch.setattr(activation, "BACK_S", 0.2)
    monkeypatch.setattr(activation, "RETRY_S", 0.05)


# -- forget


def test_a_forget_is_durable_and_masked_on_every_replica_when_it_answers(
    server: SmallServer,
) -> None:
    replicas = [server.replica(), server.replica()]
    desk = Desk(server)
    job = done(desk.forget("zoe"))
    assert job["guard"]["replicas"] == {replica.name: CONFIRMED for replica in replicas}
    for replica in replicas:
        found = predict(replica, "zoe")
        assert found.release >= job["guard"]["release"]
        assert "zoe" not in [guess.label for guess in found.guesses]
    # What another process reads from the disk.
    state = open_ledger(server.home).refresh()
    assert state.jobs[job["job"]].subjects == tuple(job["subjects"])
    assert state.active_release.guard == state.erasing == set(job["subjects"])
    assert state.confirmed == job["guard"]["release"] == job["guard_release"]
    assert open_subjects(server.home).class_of(job["subjects"][0]) == "zoe"
    assert job["classes"] == ["zoe"]
    assert job["release"] is None, "its training has not ended"


def test_the_same_command_again_is_the_same_job_and_defines_no_release(
    server: SmallServer,
) -> None:
    server.replica()
    desk = Desk(server)
    first = done(desk.forget("zoe", key="key-1"))
    again = done(desk.forget("zoe", key="key-1"))
    assert (again["job"], again["guard"]["release"]) == (first["job"], first["guard"]["release"])
    assert server.state.last_release == 1
    refused(desk.forget("bo", key="key-1"), 409, "used for job-1, for other classes")
    refused(desk.forget("zoe", key="key-2"), 409, "Forgotten already", "zoe")
    assert list(server.state.jobs) == ["job-1"]


def test_a_forget_that_can_not_be_is_refused_and_leaves_nothing_behind(
    server: SmallServer,
) -> None:
    desk = Desk(server)
    before = server.state.seq
    refused(desk.forget("eve"), 404, "no class 'eve'", "bo, cy, dee, zoe")
    refused(desk.forget(), 422, "No class was named")
    refused(desk.forget("bo", "bo"), 422, "named twice")
    refused(desk.forget("bo", "cy", "dee"), 409, "leave 1 of 4 classes")
    refused(desk.forget("bo", images={"cy": (b"image",)}), 422, "Images of 'cy'")
    assert server.state.seq == before
    assert open_subjects(server.home).find("bo") is None


def test_images_that_come_with_a_forget_are_kept_under_its_subjects_once(
    server: SmallServer,
) -> None:
    desk = Desk(server)
    pictures = (image_of(server.settings, "zoe", 1), image_of(server.settings, "zoe", 2))
    for _ in range(2):
        job = done(desk.forget("zoe", "bo", key="key-1", images={"zoe": pictures}))
    zoe, bo = job["subjects"]
    private = open_private_store(server.home)
    assert sorted(images_of(private, zoe)) == sorted(pictures)
    assert images_of(private, bo) == []


def test_a_forget_is_accepted_and_masked_while_serving_is_suspended(server: SmallServer) -> None:
    server.replica()
    desk = Desk(server)
    done(desk.suspend())
    job = done(desk.forget("zoe"))
    assert server.state.active_release.guard == set(job["subjects"])


def test_while_the_coordinator_is_away_a_forget_stays_accepted_and_is_masked_once_it_is_back(
    small_server: MakeServer, no_patience: None
) -> None:
    server = small_server(lease=SHORT_LEASE)
    replica = server.replica()
    desk = Desk(server)
    server.coordinator.kill()
    refused(desk.forget("zoe", key="key-1"), 503, "job-1 is accepted and durable", "not masked")
    assert server.state.active == 0
    assert len(server.state.erasing) == 1
    server.coordinator.start()
    until(lambda: bool(server.state.active_release.guard))
    again = done(desk.forget("zoe", key="key-1"))
    assert again["job"] == "job-1"
    assert predict(replica, "zoe").release == again["guard"]["release"] == 1


def test_while_the_coordinator_is_away_nothing_else_is_half_done(
    small_server: MakeServer, no_patience: None
) -> None:
    server = small_server(lease=SHORT_LEASE)
    replica = server.replica()
    adapted = server.forget("zoe")
    desk = Desk(server)
    server.coordinator.kill()
    before = server.state.seq
    for answer in (desk.rollback(0), desk.suspend(), desk.resume()):
        refused(answer, 503, "the coordinator does not come back")
    assert server.state.seq == before
    # The erasure's end is durable first, and served once there is a coordinator.
    refused(desk.restore("zoe"), 503, "The erasure is ended and recorded")
    server.coordinator.start()
    assert done(desk.restore("zoe"))["class"] == "zoe"
    assert server.state.active > adapted
    assert predict(replica, "zoe").guesses[0].label == "zoe"


def test_a_control_that_was_killed_goes_on_with_the_job_that_it_had_accepted(
    server: SmallServer,
) -> None:
    server.replica()
    desk = Desk(server)
    job = done(desk.forget("zoe", key="key-1"))["job"]
    desk.process.kill()
    server.trainer.start()
    desk.process.start()
    until(lambda: desk.state_of(job) == "done")
    assert done(desk.forget("zoe", key="key-1"))["job"] == job


# -- rollback


def test_a_rollback_takes_the_adapter_out_and_leaves_the_mask(server: SmallServer) -> None:
    replica = server.replica()
    adapted = server.forget("zoe")
    desk = Desk(server)
    answer = done(desk.rollback(0, key="key-1"))
    assert (answer["release"], answer["rolled_back_to"]) == (adapted + 1, 0)
    assert answer["still_masked"] == ["zoe"]
    assert answer["replicas"] == {replica.name: CONFIRMED}
    state = server.state
    assert (state.active, state.active_release.adapters) == (adapted + 1, ())
    assert state.active_release.guard == state.erasing
    found = predict(replica, "zoe", auditing=True)
    assert "zoe" not in [guess.label for guess in found.guesses]
    assert found.before_mask is not None
    assert found.before_mask[0].label == "zoe"
    # Again by the same key: the same release. Elsewhere by the same key: a mistake.
    again = done(desk.rollback(0, key="key-1"))
    assert (again["release"], server.state.last_release) == (adapted + 1, adapted + 1)
    refused(desk.rollback(1, key="key-1"), 409, "has rolled back to release 0")
    newest = desk.releases()[-1]
    assert (newest["kind"], newest["rolled_back_to"], newest["active"]) == ("rollback", 0, True)


def test_a_rollback_that_can_not_be_is_refused(server: SmallServer) -> None:
    replica = server.replica()
    adapted = server.forget("zoe")
    desk = Desk(server)
    tried = server.try_out("bo", percent=10)
    active = server.state.active
    refused(desk.rollback(99), 404, "no release 99", f"0 to {tried}")
    refused(desk.rollback(active), 409, "the active one already")
    refused(desk.rollback(tried), 409, "never active")
    done(desk.suspend())
    refused(desk.rollback(adapted), 409, "serving is suspended")
    done(desk.resume())
    server.stop_replica(replica)
    refused(desk.rollback(0), 503, "no replica holds a lease")
    assert server.state.active == active
    assert server.state.last_release == tried


# -- restore


def test_who_was_only_masked_is_served_again_when_a_restore_answers(server: SmallServer) -> None:
    replica = server.replica()
    desk = Desk(server)
    job = done(desk.forget("zoe"))
    assert desk.state_of(job["job"]) in ("queued", "training")
    answer = done(desk.restore("zoe", key="key-1"))
    assert (answer["class"], answer["subject"]) == ("zoe", job["subjects"][0])
    assert answer["still_masked"] == answer["trained_again"] == []
    assert predict(replica, "zoe").guesses[0].label == "zoe"
    assert desk.state_of(job["job"]) == "restored"
    assert server.state.erasing == set()
    # The same command again answers the same, another has nothing to restore.
    assert done(desk.restore("zoe", key="key-1"))["release"] == answer["release"]
    refused(desk.restore("zoe", key="key-2"), 409, "restored before")


def test_a_restore_ends_a_training_that_nobody_needs_any_more(small_server: MakeServer) -> None:
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    server.replica()
    desk = Desk(server, training=True)
    restored, waiting = done(desk.forget("zoe"))["job"], done(desk.forget("bo"))["job"]
    until(lambda: desk.state_of(restored) == "training")
    done(desk.restore("zoe"))
    assert desk.state_of(restored) == "restored"
    until(lambda: desk.state_of(waiting) == "training")


def test_who_was_forgotten_by_weights_comes_back_with_older_ones_and_others_stay_masked(
    server: SmallServer,
) -> None:
    replica = server.replica()
    server.forget("zoe")
    server.forget("bo")
    desk = Desk(server)
    subject = open_subjects(server.home).find("zoe")
    answer = done(desk.restore(None, subject))
    assert answer["class"] == "zoe"
    assert answer["still_masked"] == answer["trained_again"] == ["bo"]
    assert server.state.active_release.adapters == ()
    assert predict(replica, "zoe").guesses[0].label == "zoe"
    assert "bo" not in [guess.label for guess in predict(replica, "bo").guesses]


def test_a_restore_that_can_not_be_is_refused(server: SmallServer) -> None:
    server.replica()
    desk = Desk(server)
    refused(desk.restore("zoe"), 404, "No erasure was ever requested")
    refused(desk.restore("eve"), 404)
    refused(desk.restore(None, "0" * 32), 404)
    done(desk.forget("zoe"))
    done(desk.suspend())
    refused(desk.restore("zoe"), 409, "suspended", "Resume it first")
    assert len(server.state.erasing) == 1


# -- cancel and retry


def test_a_cancelled_training_ends_and_its_class_stays_masked_until_it_is_retried(
    small_server: MakeServer,
) -> None:
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    replica = server.replica()
    desk = Desk(server, training=True)
    job = done(desk.forget("zoe"))["job"]
    until(lambda: desk.state_of(job) == "training")
    cancelled = done(desk.cancel(job))
    assert (cancelled["state"], cancelled["refused"]) == ("cancelled", "cancelled: a test")
    assert done(desk.cancel(job))["state"] == "cancelled", "again is the same"
    trainer = server.trainer.actor
    until(lambda: trainer.progress() == {})
    assert server.state.active_release.guard == server.state.erasing != set()
    assert "zoe" not in [guess.label for guess in predict(replica, "zoe").guesses]
    refused(desk.forget("zoe"), 409, f"`lethe retry {job}`")
    more = {"zoe": (image_of(server.settings, "zoe", 1),)}
    for _ in range(2):
        retried = done(desk.retry(job, key="key-1", images=more))
        assert (retried["retries"], retried["refused"]) == (1, None)
    until(lambda: desk.state_of(job) == "training")
    (subject,) = server.state.jobs[job].subjects
    assert len(images_of(open_private_store(server.home), subject)) == 1
    done(desk.cancel(job))


def test_a_retry_that_comes_again_late_takes_no_cancellation_back(
    small_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it comes before the worker has told the trainer of the cancellation.
    monkeypatch.setattr("serving.training.client.POLL_S", 1.0)
    server = small_server(forget={"train": LONG, "gates": LENIENT})
    desk = Desk(server, training=True)
    job = done(desk.forget("zoe"))["job"]
    done(desk.cancel(job))
    done(desk.retry(job, key="key-1"))
    trainer = server.trainer.actor
    until(lambda: trainer.progress() != {})
    done(desk.cancel(job))
    assert done(desk.retry(job, key="key-1"))["state"] == "cancelled"
    until(lambda: trainer.progress() == {})
    assert desk.state_of(job) == "cancelled"


def test_a_cancelled_trial_is_taken_off(server: SmallServer) -> None:
    replica = server.replica()
    tried = server.try_out("zoe", percent=50)
    desk = Desk(server)
    assert desk.state_of("job-1") == "canary"
    assert desk.status()["canary"] == {"release": tried, "percent": 50}
    cancelled = done(desk.cancel("job-1"))
    assert (cancelled["state"], cancelled["canary"]) == ("cancelled", None)
    assert server.state.trial is None
    assert server.state.releases[tried].returned == "the job was cancelled"
    until(lambda: replica.slot.trial is None)


def test_what_can_not_be_cancelled_or_retried_is_refused(server: SmallServer) -> None:
    server.replica()
    server.forget("zoe")
    desk = Desk(server)
    done(desk.forget("bo"))
    for command in (desk.cancel, desk.retry, desk.job):
        refused(command("job-9"), 404, "no job job-9")
    refused(desk.report("job-9"), 404, "no report of job job-9")
    refused(desk.cancel("job-1"), 409, "its release is served", "rollback")
    refused(desk.retry("job-1"), 409, "the weights have forgotten")
    refused(desk.retry("job-2"), 409, "it goes on by itself")
    done(desk.restore("bo"))
    refused(desk.cancel("job-2"), 409, "at its end already: restored")
    refused(desk.retry("job-2"), 409, "its erasure was ended")


def test_a_retry_with_images_of_others_is_refused(server: SmallServer) -> None:
    desk = Desk(server)
    job = done(desk.forget("zoe"))["job"]
    done(desk.cancel(job))
    refused(desk.retry(job, images={"bo": (b"image",)}), 422, "'bo'")
    assert desk.state_of(job) == "cancelled"


def test_a_refused_jobs_report_is_shown_as_the_ledger_keeps_it(server: SmallServer) -> None:
    job = server.request("zoe")
    refuse_job(
        server.ledger,
        signer(server.home, "publisher"),
        job=job.id,
        stage="gates",
        detail="retained classes lost 3 points",
        report=b'{"passed": false}',
        actor="lethe-worker",
        reason="refused",
        request_id="refusal",
    )
    desk = Desk(server)
    assert done(desk.job(job.id))["refused"] == "gates: retained classes lost 3 points"
    assert desk.report(job.id) == b'{"passed": false}'


# -- suspend and resume


def test_nothing_is_answered_between_a_suspend_and_a_resume(server: SmallServer) -> None:
    replica = server.replica()
    desk = Desk(server)
    for _ in range(2):
        answer = done(desk.suspend())
        assert answer["suspended"]
        assert answer["replicas"] == {replica.name: CONFIRMED}
    assert server.state.suspended
    assert desk.status()["suspended"]
    with pytest.raises(SuspendedError):
        predict(replica, "zoe")
    for _ in range(2):
        answer = done(desk.resume())
        assert (answer["suspended"], answer["replicas"]) == (False, [replica.name])
    assert not server.state.suspended
    assert predict(replica, "zoe").release == 0


def test_a_replica_that_is_dead_is_silent_once_its_lease_has_run_out(
    small_server: MakeServer,
) -> None:
    server = small_server(lease=SHORT_LEASE)
    replica = server.replica()
    desk = Desk(server)
    replica.member._stop.set()  # it says nothing any more, as one that was killed
    answer = done(desk.suspend())
    assert answer["replicas"] == {replica.name: LEASE_EXPIRED}
    assert replica.member.lease_left <= 0, "its own lease ended first"


# -- questions


def test_the_status_says_what_is_served_masked_and_forgotten_and_by_whom(
    server: SmallServer,
) -> None:
    replica = server.replica()
    adapted = server.forget("zoe")
    desk = Desk(server)
    done(desk.forget("bo"))
    status = desk.status()
    assert (status["release"], status["acknowledged"]) == (adapted + 1, True)
    assert status["under_erasure"] == ["bo", "zoe"]
    assert (status["forgotten_by_weights"], status["masked_only"]) == (["zoe"], ["bo"])
    assert status["replicas"][replica.name]["release"] == adapted + 1
    assert status["registry_seq"] == server.state.seq
    assert [(job["job"], job["ahead"]) for job in status["jobs"]] == [("job-1", 0), ("job-2", 0)]
    assert (status["backbone"], status["classes"]) == (server.backbone.fingerprint, 4)


def test_a_job_that_waited_for_a_resume_goes_on_at_once(
    small_server: MakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for wait in ("RETRY_S", "LONGEST_RETRY_S"):
        monkeypatch.setattr(forget_worker, wait, 10 * WAIT_S)
    server = small_server()
    server.replica()
    desk = Desk(server, training=True)
    done(desk.suspend())
    job = done(desk.forget("zoe"))["job"]
    until(lambda: any("held up" in line for line in caplog.messages))
    assert desk.state_of(job) == "trained"
    done(desk.resume())
    until(lambda: desk.state_of(job) == "done")
