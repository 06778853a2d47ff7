"""How far each forget job is: pending, trained or served. Pure functions of the ledger's fold."""

from __future__ import annotations

from registry.errors import ConflictError
from registry.fold.jobs import adapter_to_publish
from registry.fold.state import Job, State, Trial
from serving.coordination.unserved import was_taken_off

ENDED = ("done", "refused", "cancelled", "restored")
"""States of a job's view at which it stays until an operator acts."""
CANCELLED = "cancelled"
"""The stage of the refusal that the ledger holds for a job that an operator cancelled."""


def is_cancelled(job: Job) -> bool:
    """Whether an operator cancelled the job: nothing is trained for it any more."""
    return job.state == "refused" and job.refusal is not None and job.refusal.stage == CANCELLED


def pending_jobs(state: State) -> list[Job]:
    """Jobs that were neither refused nor restored and whose adapter is not served for good yet.

    Oldest first.
    """
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
    """The pending `job`, and after it the jobs to train as one task with it, oldest first.

    If an adapter was already trained for the job, these are the jobs that it was trained for.
    Otherwise they are all pending jobs that may join and have no other adapter yet.
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
    """The activated release that put the job's adapter on the stack for good; None if none did.

    A rollback that takes the adapter off the stack doesn't change this: the job is not trained
    again. But it is None again when the adapter had to go because another subject was restored:
    then the job is trained again.
    """
    adapter = state.jobs[job_id].adapter
    if adapter is None or state.adapters[adapter].provisional:
        return None
    return served_release(state, job_id)


def is_trained(state: State, job: Job, stack: tuple[str, ...]) -> bool:
    """Whether the job has a final adapter that was trained on `stack`.

    Then it needs no training: the ledger would accept no other adapter for it.
    """
    try:
        entry = adapter_to_publish(state, state.jobs[job.id])
    except ConflictError:
        return False
    return not entry.provisional and entry.stack == stack


def trial_of(state: State, job_id: str) -> Trial | None:
    """The trial that is on, if it tries the job's adapter; else None."""
    trial = state.trial
    return trial if trial is not None and state.releases[trial.release].job == job_id else None


def was_returned(state: State, job: Job) -> bool:
    """Whether the job's newest release was on trial and was taken off: it is never served."""
    return job.release is not None and state.releases[job.release].returned is not None


def provisional_release(state: State, job_id: str) -> int | None:
    """The release that put the job's provisional adapter on the stack; None if it is not there."""
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
    """Like `adopted_release`, but counts a provisional adapter too."""
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
    """The activated release of that kind that was made for the job; None if there is none."""
    return next(
        (
            number
            for number, release in state.releases.items()
            if release.job == job_id and release.kind == kind and release.activated_at
        ),
        None,
    )
