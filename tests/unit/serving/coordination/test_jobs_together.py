"""Which waiting jobs are trained as one task, and when the resulting adapter is still valid."""

from __future__ import annotations

from registry.fold.state import State
from serving.control.job_views import job_view
from serving.coordination.jobs import is_trained, pending_jobs, trained_together
from tests.unit.registry.registry_acts import Acts


def together(state: State) -> list[str]:
    """The ids of the jobs that the next training is for."""
    return [job.id for job in trained_together(state, pending_jobs(state)[0])]


def guarded(acts: Acts, number: int, *, batch: bool = True) -> str:
    job = acts.forget(number, batch=batch)
    acts.serve(acts.publish("guard", job.id).number)
    return job.id


def view(acts: Acts, job: str) -> dict[str, object]:
    return job_view(
        acts.state.jobs[job], acts.state, class_of=str, progress={}, problem=None, ahead=0
    )


def test_waiting_jobs_that_ask_for_it_are_trained_together(acts: Acts) -> None:
    first, alone, third = guarded(acts, 1), guarded(acts, 2, batch=False), guarded(acts, 3)
    canary = acts.forget(4, canary=10)
    assert together(acts.state) == [first, third]
    entry = acts.train(first, third)
    assert is_trained(acts.state, acts.state.jobs[third], ())
    # A job that comes now is not trained with them.
    late = guarded(acts, 5)
    assert together(acts.state) == [first, third]
    acts.serve(acts.publish("adapter", first).number)
    assert view(acts, first)["batch"] == {"with": [third], "refused": None}
    assert view(acts, third)["state"] == "done"
    assert together(acts.state) == [alone]
    acts.train(alone)
    assert not is_trained(acts.state, acts.state.jobs[alone], ())
    assert is_trained(acts.state, acts.state.jobs[alone], (entry.id,))
    acts.serve(acts.publish("adapter", alone).number)
    assert [job.id for job in pending_jobs(acts.state)] == [canary.id, late]


def test_a_job_whose_company_left_is_trained_anew_without_it(acts: Acts) -> None:
    first, second, third = (guarded(acts, number) for number in (1, 2, 3))
    acts.train(first, second, third)
    acts.refuse(second, stage="cancelled")
    assert not is_trained(acts.state, acts.state.jobs[first], ())
    assert together(acts.state) == [first, third]
    acts.train(first, third)
    acts.restore(1)
    assert not is_trained(acts.state, acts.state.jobs[third], ())
    assert together(acts.state) == [third]


def test_what_was_refused_as_one_task_is_trained_one_by_one_and_says_why(acts: Acts) -> None:
    first, second = guarded(acts, 1), guarded(acts, 2)
    acts.refuse(first, second)
    assert together(acts.state) == [first]
    shown = view(acts, first)
    assert (shown["state"], shown["refused"]) == ("queued", None)
    assert shown["batch"] == {"with": [], "refused": "gates: retained classes lost 3 points"}
    assert shown["report"] is not None
    third = guarded(acts, 3)
    acts.train(first)
    acts.serve(acts.publish("adapter", first).number)
    assert together(acts.state) == [second]
    acts.refuse(second)
    assert together(acts.state) == [third]


def test_a_provisional_adapter_is_no_training(acts: Acts) -> None:
    """Otherwise a server that was killed while it served one would never train the job."""
    job = guarded(acts, 1, batch=False)
    acts.train(job, provisional=True)
    acts.serve(acts.publish("adapter", job).number)
    stack = acts.state.stack_for(job)
    assert not is_trained(acts.state, acts.state.jobs[job], stack)
    acts.train(job)
    assert is_trained(acts.state, acts.state.jobs[job], stack)
