"""The console's list of erasures and how far each is: pure functions of the ledger's fold."""

from __future__ import annotations

from typing import Any

from registry.audit.erasure import Standing
from registry.fold.state import Job, State
from registry.schema import encode_time
from serving.control.job_views import ClassOf, named


def standing(state: State, subject: str) -> Standing:
    """What every replica does with `subject` now; its audit card uses the same word."""
    if subject not in state.erasing:
        return "restored"
    if state.seal is not None:
        return "sealed"
    # A replica may serve the last confirmed release until the active one is confirmed.
    served = {state.confirmed, state.active}
    if all(subject in state.subjects_forgotten(number) for number in served):
        return "forgotten"
    if all(subject in state.releases[number].guard for number in served):
        return "masked"
    return "requested"


def erasures_view(state: State, *, class_of: ClassOf) -> list[dict[str, Any]]:
    """One row for each subject of any job, with the newest job that names it; oldest job first.

    `concealed`: the active release masks the subject, or its weights erase it.
    """
    latest: dict[str, Job] = {}
    for job in state.jobs.values():
        for subject in job.subjects:
            latest.pop(subject, None)
            latest[subject] = job
    return [
        {
            "subject": subject,
            "class": named(subject, class_of),
            "standing": standing(state, subject),
            "concealed": subject in state.active_release.guard
            or subject in state.subjects_erased_by_weights(state.active),
            "held": subject in state.held,
            "job": job.id,
            "requested_at": encode_time(job.at),
        }
        for subject, job in latest.items()
    ]
