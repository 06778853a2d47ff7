"""Forget jobs and releases as JSON for the operator: pure functions of the ledger's fold.

The JSON holds class names, since only the operator's token gets it. No record holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.metrics_core import Metric as Family

from registry.errors import NotFoundError
from registry.fold.state import Job, Refusal, State
from serving.coordination.jobs import (
    adopted_release,
    is_cancelled,
    pending_jobs,
    provisional_release,
    release_of,
    trial_of,
)
from serving.monitoring.messages import ControlFigures

ClassOf = Callable[[str], str]
"""Subject -> class name; raises NotFoundError when the subject map no longer holds it."""


def named(subject: str, class_of: ClassOf) -> str:
    try:
        return class_of(subject)
    except NotFoundError:
        return subject


def names_of(subjects: Iterable[str], class_of: ClassOf) -> list[str]:
    return sorted(named(subject, class_of) for subject in subjects)


def report_of(job: Job, state: State) -> str | None:
    """The digest of the job's newest report; None if it has none.

    For a job that left a refused batch and was not trained alone yet, this is the batch's report.
    """
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
    """One forget job as JSON.

    Args:
        progress: Of the training that runs for it; empty if none does.
        problem: The trainer's own words on the last failure. They may name classes, so no record
            holds them.
        ahead: How many jobs are trained before it.
    """
    stage: str = job.state
    adopted = adopted_release(state, job.id)
    trial = trial_of(state, job.id)
    if is_cancelled(job):
        stage = "cancelled"
    elif trial is not None:
        stage = "canary"
    elif progress and stage != "restored":
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
    """The jobs that the job's adapter was trained for, the job itself included."""
    return state.adapters[job.adapter].jobs if job.adapter else ()


def control_figures(state: State, *, read_at: float, families: list[Family]) -> ControlFigures:
    """Numbers about commands and jobs for the metrics page.

    `read_at`: Unix time, seconds; `families`: the trainer's metrics.
    """
    waiting = pending_jobs(state)
    jobs = list(state.jobs.values())
    return ControlFigures(
        pending=len(waiting),
        oldest_pending=min((job.at.timestamp() for job in waiting), default=0.0),
        accepted=len(jobs),
        done=sum(job.state == "done" for job in jobs),
        refused=sum(job.state == "refused" and not is_cancelled(job) for job in jobs),
        seq=state.seq,
        active=state.active,
        suspended=state.suspended,
        under_erasure=len(state.erasing),
        forgotten=len(state.subjects_forgotten(state.active)),
        read_at=read_at,
        families=families,
    )


def releases_view(state: State, *, class_of: ClassOf) -> list[dict[str, Any]]:
    """All releases, oldest first."""
    trial = state.trial
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
            "forgotten": names_of(state.subjects_forgotten(number), class_of),
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
