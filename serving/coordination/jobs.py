"""How far each forget job is, as the ledger's fold says it: what is pending, trained, served."""

from __future__ import annotations

from registry.errors import ConflictError
from registry.fold.jobs import adapter_to_publish
from registry.fold.state import Job, State, Trial
from serving.coordination.unserved import was_taken_off

ENDED = ("done", "refused", "cancelled", "restored")
"""States that a job's view doesn't leave by itself."""
CANCELLED = "cancelled"
"""The stage at which the ledger says that a job was refused, when an operator cancelled it."""


def is_cancelled(job: Job) -> bool:
    """Whether an operator gave the job up: nothing is trained for it any more."""
    return job.state == "refused" and job.refusal is not None and job.refusal.stage == CANCELLED


def pending_jobs(state: State) -> list[Job]:
    """Jobs that are not at their end, oldest first."""
    ended = ("refused", "restored")
    return [
        job
        for job in state.jobs.values()
        if job.state not in ended and adopted_release(state, job.id) is None
    ]


def is_batchable(job: Job) -> bool:
    """Whether the job may be trained as one task with others."""
    return job.batch and job.apart is None and job.canary is None


def trained_together(state: State, job: Job) -> tuple[Job, ...]:
    """The pending `job` and those that are to be trained as one task with it, oldest first.

    Whose adapter is made stays with those that it was made for; who has another is left alone.
    """
    if not is_batchable(job):
        return (job,)
    try:
        company = adapter_to_publish(state, job).jobs
        return (job, *(state.jobs[name] for name in company if name != job.id))
    except ConflictError:
        others = (
            other
            for other in pending_jobs(state)
            if other.id != job.id and is_batchable(other) and other.adapter in (None, job.adapter)
        )
        return (job, *others)


def adopted_release(state: State, job_id: str) -> int | None:
    """The activated release that put the job's adapter on the stack for good.

    It stays that one when a rollback took the adapter away, which is not put back. None again when
    it had to go because somebody was brought back: the job is trained anew then.
    """
    adapter = state.jobs[job_id].adapter
    if adapter is None or state.adapters[adapter].provisional:
        return None
    return served_release(state, job_id)


def is_trained(state: State, job: Job, stack: tuple[str, ...]) -> bool:
    """Whether the job has an adapter to keep, on this stack: the ledger would take no other."""
    try:
        entry = adapter_to_publish(state, state.jobs[job.id])
    except ConflictError:
        return False
    return not entry.provisional and entry.stack == stack


def trial_of(state: State, job_id: str) -> Trial | None:
    """The trial that is on, if it is of the job's adapter."""
    trial = state.canary
    return trial if trial is not None and state.releases[trial.release].job == job_id else None


def was_returned(state: State, job: Job) -> bool:
    """Whether the job's newest release was on trial and was taken off: it is never served."""
    return job.release is not None and state.releases[job.release].returned is not None


def provisional_release(state: State, job_id: str) -> int | None:
    """The release that put the job's provisional adapter on the stack, while it is there."""
    mine = [
        id
        for id, entry in state.adapters_in_force(state.active).items()
        if entry.provisional and entry.job == job_id
    ]
    return next(
        (
            number
            for number, release in state.releases.items()
            if mine and mine[0] in release.adapters and release.activated_at
        ),
        None,
    )


def served_release(state: State, job_id: str) -> int | None:
    """As `adopted_release`, and for a provisional adapter too."""
    job = state.jobs[job_id]
    adapter = job.adapter
    if adapter is None or was_taken_off(state, job):
        return None
    return next(
        (
            number
            for number, release in state.releases.items()
            if release.kind == "adapter" and adapter in release.adapters and release.activated_at
        ),
        None,
    )


def release_of(state: State, job_id: str, kind: str) -> int | None:
    """The activated release of that kind that the job made."""
    return next(
        (
            number
            for number, release in state.releases.items()
            if release.job == job_id and release.kind == kind and release.activated_at
        ),
        None,
    )
