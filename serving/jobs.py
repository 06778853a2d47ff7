"""What the operator is told of forget jobs and releases: plain values made from the ledger's fold.

Class names appear here only because an operator's token was shown; no record holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.errors import NotFoundError
from registry.state import Job, State
from serving.restoration import was_taken_off

ClassOf = Callable[[str], str]
"""Subject -> class name; raises NotFoundError when the subject map no longer holds it."""


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


def pending_jobs(state: State) -> list[Job]:
    """Jobs that are not at their end, oldest first."""
    ended = ("refused", "restored")
    return [
        job
        for job in state.jobs.values()
        if job.state not in ended and adopted_release(state, job.id) is None
    ]


def adopted_release(state: State, job_id: str) -> int | None:
    """The activated release that put the job's present adapter on the stack.

    It stays that one when a rollback took the adapter away, which is not put back. None again when
    it had to go because somebody was brought back: the job is trained anew then.
    """
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
    """The digest of the job's report."""
    if job.refusal is not None:
        return job.refusal.report
    return state.adapters[job.adapter].report if job.adapter else None


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
    if progress:
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
        "problem": problem,
        "progress": dict(progress) or None,
        "refused": f"{job.refusal.stage}: {job.refusal.detail}" if job.refusal else None,
        "report": report_of(job, state),
    }


def releases_view(state: State, *, class_of: ClassOf) -> list[dict[str, Any]]:
    """All releases, oldest first."""

    def names(subjects: Iterable[str]) -> list[str]:
        return sorted(named(subject, class_of) for subject in subjects)

    return [
        {
            "release": number,
            "kind": release.kind,
            "active": number == state.active,
            "parent": release.parent,
            "rolled_back_to": release.to,
            "adapters": list(release.adapters),
            "masked": names(release.guard),
            "forgotten": names(state.subjects_erased_by_weights(number)),
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
