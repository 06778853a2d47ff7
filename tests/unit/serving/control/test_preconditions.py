"""When a job may be cancelled or retried, and its state after that, on real ledgers."""

from __future__ import annotations

from registry.publish.jobs import refuse_job
from serving.control.job_views import control_figures, job_view
from serving.control.preconditions import why_not_cancelled, why_not_forgotten, why_not_retried
from serving.coordination.jobs import CANCELLED, pending_jobs
from tests.unit.registry.registry_acts import Acts, subject


def cancel(acts: Acts, job: str) -> None:
    refuse_job(
        acts.ledger,
        acts.signers["publisher"],
        job=job,
        stage=CANCELLED,
        detail="asked by mistake",
        report=None,
        **acts.origin(),
    )


def test_a_cancelled_job_is_at_its_end_and_its_class_stays_masked_and_under_erasure(
    acts: Acts,
) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    assert why_not_cancelled(job.id, acts.state) is None
    cancel(acts, job.id)
    assert pending_jobs(acts.state) == []
    assert acts.state.erasing == acts.state.active_release.guard == {subject(1)}
    view = job_view(
        acts.state.jobs[job.id], acts.state, class_of=str, progress={}, problem=None, ahead=0
    )
    assert (view["state"], view["refused"]) == ("cancelled", "cancelled: asked by mistake")
    assert control_figures(acts.state, read_at=0.0, families=[]).refused == 0
    # Cancelling again changes nothing. Other jobs go on, and their releases mask its class too.
    assert why_not_cancelled(job.id, acts.state) is None
    other = acts.erase(2)
    assert acts.state.jobs[other.id].state == "done"
    assert acts.state.active_release.guard == {subject(1), subject(2)}
    acts.restore(1)
    assert acts.state.erasing == {subject(2)}


def test_what_was_trained_and_not_yet_served_can_be_cancelled(acts: Acts) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id)
    assert why_not_cancelled(job.id, acts.state) is None
    cancel(acts, job.id)
    assert pending_jobs(acts.state) == []


def test_what_is_on_trial_or_was_taken_off_can_be_cancelled_and_what_is_about_to_be_served_not(
    acts: Acts,
) -> None:
    job = acts.forget(1, canary=10)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id)
    tried = acts.publish("adapter", job.id).number
    about_to_be_served = why_not_cancelled(job.id, acts.state)
    assert about_to_be_served is not None
    assert "about to be" in about_to_be_served.detail
    acts.try_out(tried)
    assert why_not_cancelled(job.id, acts.state) is None
    acts.take_off(tried)
    assert why_not_cancelled(job.id, acts.state) is None
    cancel(acts, job.id)
    assert pending_jobs(acts.state) == []
    # Another try has another adapter, which may be about to be served again.
    acts.retry(job.id)
    acts.train(job.id)
    acts.publish("adapter", job.id)
    assert why_not_cancelled(job.id, acts.state) is not None


def test_a_restored_job_is_at_its_end_also_while_its_training_still_runs(acts: Acts) -> None:
    job = acts.forget(1)
    acts.restore(1)
    view = job_view(
        acts.state.jobs[job.id],
        acts.state,
        class_of=str,
        progress={"phase": "select"},
        problem=None,
        ahead=0,
    )
    assert view["state"] == "restored"


def test_what_was_refused_or_cancelled_can_be_tried_again_and_nothing_else(acts: Acts) -> None:
    done, refused, cancelled = acts.erase(1), acts.forget(2), acts.forget(3)
    waiting, restored = acts.forget(4), acts.forget(5)
    acts.refuse(refused.id)
    cancel(acts, cancelled.id)
    acts.restore(5)
    for job in (refused, cancelled):
        assert why_not_retried(job.id, acts.state, request_id="r") is None
    wrong = (done, "rollback"), (waiting, "status"), (restored, "Forget the class again")
    for job, advice in wrong:
        rejection = why_not_retried(job.id, acts.state, request_id="r")
        assert rejection is not None
        assert rejection.status == 409
        assert advice in rejection.advice
    nobody = why_not_retried("job-9", acts.state, request_id="r")
    assert nobody is not None
    assert nobody.status == 404
    again = acts.retry(refused.id)
    assert [job.id for job in pending_jobs(acts.state)] == [refused.id, waiting.id]
    # The same command again is the same retry. Another command has nothing to retry.
    assert why_not_retried(refused.id, acts.state, request_id=again.retries[0]) is None
    assert why_not_retried(refused.id, acts.state, request_id="another") is not None


def test_a_forget_of_what_was_refused_says_how_to_try_again(acts: Acts) -> None:
    names = {subject(number): str(number) for number in range(5)}
    refused, waiting = acts.forget(1), acts.forget(2)
    acts.refuse(refused.id)
    for number, advice in ((1, f"`lethe retry {refused.id}`"), (2, "`lethe status`")):
        rejection = why_not_forgotten(
            [str(number)], acts.state, known=[*names.values()], class_of=names.__getitem__
        )
        assert rejection is not None
        assert rejection.status == 409
        assert advice in rejection.advice
    acts.retry(refused.id)
    rejection = why_not_forgotten(
        ["1"], acts.state, known=[*names.values()], class_of=names.__getitem__
    )
    assert rejection is not None
    assert "lethe status" in rejection.advice
    assert waiting.state == "requested"


def test_a_job_at_its_end_cannot_be_cancelled(acts: Acts) -> None:
    done, refused, restored = acts.erase(1), acts.forget(2), acts.forget(3)
    acts.refuse(refused.id)
    acts.restore(3)
    for job, words in ((done, "served"), (refused, "refused"), (restored, "restored")):
        rejection = why_not_cancelled(job.id, acts.state)
        assert rejection is not None
        assert rejection.status == 409
        assert words in rejection.detail
    nobody = why_not_cancelled("job-9", acts.state)
    assert nobody is not None
    assert nobody.status == 404
