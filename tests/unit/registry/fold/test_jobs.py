"""The fold of jobs that are trained as one task, and of jobs that are retried."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.audit.erasure import audit
from registry.errors import ConflictError, NotFoundError
from registry.fold.state_json import state_from_json, state_to_json
from registry.log.ledger import Ledger
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import Acts, subject

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-jobs"


def waiting(acts: Acts, *numbers: int) -> list[str]:
    """Guarded jobs that may be trained together, each with one subject."""
    jobs = [acts.forget(number, batch=True) for number in numbers]
    for job in jobs:
        acts.serve(acts.publish("guard", job.id).number)
    return [job.id for job in jobs]


def test_jobs_trained_as_one_task_are_each_done_by_one_release(acts: Acts) -> None:
    first, second, third = waiting(acts, 1, 2, 3)
    adapter = acts.train(first, second, third)
    assert adapter.jobs == (first, second, third)
    assert adapter.subjects == (subject(1), subject(2), subject(3))
    assert {acts.state.jobs[job].adapter for job in adapter.jobs} == {adapter.id}
    release = acts.publish("adapter", second)  # it doesn't matter which job asks
    acts.serve(release.number)
    assert {(job.state, job.release) for job in acts.state.jobs.values()} == {
        ("done", release.number)
    }
    assert state_from_json(state_to_json(acts.state)) == acts.state
    assert acts.ledger.refresh() == Ledger(acts.ledger._store, acts.ledger._trust).refresh()


def test_each_subject_of_one_task_has_an_audit_of_its_own(acts: Acts) -> None:
    first, second = waiting(acts, 1, 2)
    acts.refuse(first, second)
    acts.train(second)
    acts.serve(acts.publish("adapter", second).number)
    for number, standing in ((1, "masked"), (2, "forgotten")):
        found = audit(acts.ledger, subject(number))
        assert found.standing == standing
        kinds = [entry.record.type for entry in found.entries]
        assert kinds.count("requested") == kinds.count("refused") == 1
        assert kinds.count("trained") == number - 1
    # Trained together again after both were restored: both audits have the one adapter.
    acts.restore(1, 2)
    acts.serve(acts.roll_back(0).number)
    third, fourth = waiting(acts, 1, 2)
    adapter = acts.train(third, fourth)
    acts.serve(acts.publish("adapter", third).number)
    for number in (1, 2):
        found = audit(acts.ledger, subject(number))
        assert found.standing == "forgotten"
        assert adapter.id in [evidence.adapter.id for evidence in found.evidence]
        asked = [e.record.request_id for e in found.entries if e.record.type == "requested"]
        assert len(asked) == 2
        assert len({milestone.entry.record.request_id for milestone in found.milestones}) > 1


def test_only_jobs_that_ask_for_it_are_trained_together(acts: Acts) -> None:
    willing, other = acts.forget(1, batch=True).id, acts.forget(2).id
    with pytest.raises(ConflictError, match=f"{other} is to be trained by itself"):
        acts.train(willing, other)
    with pytest.raises(ConflictError, match=f"{other} is to be trained by itself"):
        acts.train(other, willing)
    with pytest.raises(ConflictError, match="named twice"):
        acts.train(willing, willing)


def test_what_is_refused_as_one_task_goes_on_alone(acts: Acts) -> None:
    first, second = waiting(acts, 1, 2)
    acts.refuse(first, second)
    for name in (first, second):
        job = acts.state.jobs[name]
        assert (job.state, job.refusal) == ("requested", None)
        assert job.apart is not None
        assert job.apart.stage == "gates"
    with pytest.raises(ConflictError, match="by itself"):
        acts.train(first, second)
    assert state_from_json(state_to_json(acts.state)) == acts.state
    acts.train(first)
    acts.serve(acts.publish("adapter", first).number)
    assert acts.refuse(second).state == "refused"
    assert acts.state.jobs[first].state == "done"


def test_an_adapter_of_several_is_not_served_after_one_is_refused_or_restored(
    acts: Acts,
) -> None:
    first, second, third = waiting(acts, 1, 2, 3)
    acts.train(first, second, third)
    acts.refuse(second, stage="cancelled")
    with pytest.raises(ConflictError, match=f"is for {second} too, which is refused"):
        acts.publish("adapter", first)
    acts.train(first, third)
    acts.restore(3)
    with pytest.raises(ConflictError, match="restored"):
        acts.publish("adapter", first)
    acts.train(first)
    acts.serve(acts.publish("adapter", first).number)
    assert [job.state for job in acts.state.jobs.values()] == ["done", "refused", "restored"]


def test_a_refused_job_is_tried_again_and_the_same_request_does_it_once(acts: Acts) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    acts.refuse(job.id)
    again = acts.retry(job.id)
    assert (again.state, again.refusal, again.adapter) == ("requested", None, None)
    assert again.retries == (f"request-{acts.requests}",)
    assert again.tried_from == acts.state.seq
    seq = acts.state.seq
    acts.requests -= 1
    assert acts.retry(job.id) == again
    assert acts.state.seq == seq
    assert state_from_json(state_to_json(acts.state)) == acts.state
    acts.train(job.id)
    acts.serve(acts.publish("adapter", job.id).number)
    assert acts.state.jobs[job.id].state == "done"


def test_only_what_was_refused_can_be_tried_again(acts: Acts) -> None:
    done, waits, restored = acts.erase(1), acts.forget(2), acts.forget(3)
    acts.restore(3)
    for job in (done, waits, restored):
        with pytest.raises(ConflictError, match="only what was refused"):
            acts.retry(job.id)
    with pytest.raises(NotFoundError, match="job-9"):
        acts.retry("job-9")


def test_an_adapter_that_was_taken_off_trial_is_made_anew_by_a_retry(acts: Acts) -> None:
    job = acts.forget(1, canary=10)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id)
    release = acts.publish("adapter", job.id).number
    acts.try_out(release)
    acts.take_off(release)
    acts.refuse(job.id, stage="canary")
    again = acts.retry(job.id)
    assert again.adapter is None
    assert acts.state.releases[release].seq < again.tried_from
    acts.train(job.id)
    acts.serve(acts.publish("adapter", job.id).number)
    assert acts.state.jobs[job.id].state == "done"


def test_a_provisional_adapter_stays_in_service_while_its_job_is_tried_again(acts: Acts) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    closed = acts.train(job.id, provisional=True)
    acts.serve(acts.publish("adapter", job.id).number)
    acts.refuse(job.id)
    assert acts.retry(job.id).adapter == closed.id
    trained = acts.train(job.id)
    acts.serve(acts.publish("adapter", job.id).number)
    assert acts.state.active_release.adapters == (trained.id,)


def test_a_registry_with_retries_and_shared_trainings_stays_readable(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "registry", tmp_path / "registry")
    store, trust = DirectoryStore(tmp_path / "registry"), Trust.load(GOLDEN / "trust.json")
    found = verify(store, trust)
    assert found.problems == ()
    state = Ledger(store, trust).refresh()
    assert [(job.id, job.state, len(job.retries)) for job in state.jobs.values()] == [
        ("job-1", "done", 1),
        ("job-2", "done", 0),
        ("job-3", "done", 0),
        ("job-4", "done", 0),
    ]
    stack = state.active_release.adapters
    jobs = [state.adapters[adapter].jobs for adapter in stack]
    assert jobs == [("job-1",), ("job-2",), ("job-3", "job-4")]
    assert [job.apart is None for job in state.jobs.values()] == [False, False, True, True]
