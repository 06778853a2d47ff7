"""What the operator is told of forget jobs and releases: plain values made from the ledger's fold.

Class names appear here only because an operator's token was shown; no record holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.errors import ConflictError, NotFoundError
from registry.fold.jobs import adapter_to_publish
from registry.fold.state import Job, Refusal, State, Trial
from serving.coordination.restoration import was_taken_off

ClassOf = Callable[[str], str]
"""Subject -> class name; raises NotFoundError when the subject map no longer holds it."""


ENDED = ("done", "refused", "cancelled", "restored")
"""States that a job's view doesn't leave by itself."""
CANCELLED = "cancelled"
"""The stage at which the ledger says that a job was refused, when an operator cancelled it."""


@dataclass(frozen=True)
class Rejection:
    """A command that can't be carried out: an HTTP status, why, and what to do about it."""

    status: int
    detail: str
    advice: str = ""


def named(subject: str, class_of: ClassOf) -> str:
    try:
        return class_of(subject)
    except NotFoundError:
        return subject


def names_of(subjects: Iterable[str], class_of: ClassOf) -> list[str]:
    return sorted(named(subject, class_of) for subject in subjects)


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


def report_of(job: Job, state: State) -> str | None:
    """The digest of the job's report, or of the one that has it trained alone."""
    if job.refusal is not None:
        return job.refusal.report
    if job.adapter:
        return state.adapters[job.adapter].report
    return job.apart.report if job.apart is not None else None


def job_view(
    job: Job,
    state: State,
    *,
    class_of: ClassOf,
    progress: Mapping[str, Any],
    problem: str | None,
    ahead: int,
) -> dict[str, Any]:
    """One forget job as JSON. `ahead`: jobs that are trained before it; `progress`: if any;
    `problem`: the trainer's own words, which no record may hold."""
    stage: str = job.state
    adopted = adopted_release(state, job.id)
    trial = trial_of(state, job.id)
    if is_cancelled(job):
        stage = "cancelled"
    elif trial is not None:
        stage = "canary"
    elif progress:
        stage = "training"
    elif adopted is not None and stage != "restored":
        stage = "done" if state.confirmed >= adopted else "published"
    elif stage in ("requested", "done"):
        stage = "queued"
    return {
        "job": job.id,
        "state": stage,
        "classes": [named(subject, class_of) for subject in job.subjects],
        "subjects": list(job.subjects),
        "requested_at": _time(job.at),
        "done_at": _time(job.done_at),
        "ahead": ahead,
        "guard_release": release_of(state, job.id, "guard"),
        "release": adopted,
        "closed_form_release": provisional_release(state, job.id),
        "canary": None
        if trial is None
        else {"release": trial.release, "percent": trial.percent, "since": _time(trial.at)},
        "problem": problem,
        "progress": dict(progress) or None,
        "refused": sentence(job.refusal),
        "batch": None
        if not job.batch
        else {
            "with": [name for name in _shared(job, state) if name != job.id],
            "refused": sentence(job.apart),
        },
        "retries": len(job.retries),
        "report": report_of(job, state),
    }


def sentence(refusal: Refusal | None) -> str | None:
    return f"{refusal.stage}: {refusal.detail}" if refusal is not None else None


def _shared(job: Job, state: State) -> tuple[str, ...]:
    """The jobs that the job's adapter is for."""
    return state.adapters[job.adapter].jobs if job.adapter else ()


def job_figures(state: State) -> dict[str, Any]:
    """What the metrics page shows of commands and jobs."""
    waiting = pending_jobs(state)
    jobs = list(state.jobs.values())
    return {
        "pending": len(waiting),
        "oldest_pending": min((job.at.timestamp() for job in waiting), default=0.0),
        "accepted": len(jobs),
        "done": sum(job.state == "done" for job in jobs),
        "refused": sum(job.state == "refused" and not is_cancelled(job) for job in jobs),
        "seq": state.seq,
        "active": state.active,
        "suspended": state.suspended,
        "under_erasure": len(state.erasing),
        "forgotten": len(state.subjects_erased_by_weights(state.active)),
    }


def releases_view(state: State, *, class_of: ClassOf) -> list[dict[str, Any]]:
    """All releases, oldest first."""
    trial = state.canary
    return [
        {
            "release": number,
            "kind": release.kind,
            "active": number == state.active,
            "parent": release.parent,
            "canary": trial.percent if trial is not None and trial.release == number else None,
            "returned": release.returned,
            "rolled_back_to": release.to,
            "adapters": list(release.adapters),
            "masked": names_of(release.guard, class_of),
            "forgotten": names_of(state.subjects_erased_by_weights(number), class_of),
            "at": _time(release.at),
            "actor": release.actor,
            "activated_at": _time(release.activated_at),
            "confirmed_at": _time(release.confirmed_at),
            "swap_ms": release.confirmed_ms,
        }
        for number, release in sorted(state.releases.items())
    ]


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="milliseconds") if at else None
