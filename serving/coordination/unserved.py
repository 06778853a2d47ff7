"""What the ledger says is to be served and is not yet: restored subjects, and compactions.

Both are recorded first; the coordinator takes them up from there, so they survive a crash between
the two and can be recorded while no server runs.

`registry.publish.declarations.restore` ends an erasure and changes nothing that is served. A
release *conceals* a subject when it masks it or when its weights erase it; a restored subject is
brought back by a release that does neither. Adapters that were trained on top of one that goes, or
that erase others too, go with it: their subjects stay masked and are trained again.
"""

from __future__ import annotations

from datetime import datetime

from registry.fold.state import Job, State

MOST_DOUBLINGS = 8
"""Of the time between two tries: from 8 s to half an hour."""
ATTEMPTS = 3
"""Releases that are defined for a compaction before it is left alone."""


def to_bring_back(state: State) -> frozenset[str]:
    """The restored subjects for which no release that doesn't conceal them was active yet.

    Whoever rolls back, later, to weights that erase a restored subject wants it so: it isn't
    masked then, and is left alone.
    """
    waiting = _concealed(state, state.active) - state.erasing
    return frozenset(subject for subject in waiting if _was_masked(state, subject))


def is_time_to_bring_back(state: State, *, now: datetime, every_s: float) -> bool:
    """Whether another release may be defined for it. A failure that lasts must not fill the ledger:
    the more releases were defined on the active one in vain, the longer the next has to wait."""
    last = state.releases[state.last_release].at
    vain = state.last_release - state.active
    if vain == 0 or last is None:
        return True
    return (now - last).total_seconds() > every_s * 2.0 ** min(vain, MOST_DOUBLINGS)


def way_back(state: State) -> int | None:
    """The release whose adapters bring back who has to be; None when the active ones do, and only
    the mask is in the way."""
    waiting = to_bring_back(state)
    if not waiting & state.subjects_erased_by_weights(state.active):
        return None
    return state.release_without(waiting)


def job_about(state: State, subjects: frozenset[str]) -> Job:
    """The newest job that one of `subjects`, of which there is at least one, belongs to."""
    return max(
        (job for job in state.jobs.values() if not subjects.isdisjoint(job.subjects)),
        key=lambda job: job.seq,
    )


def was_taken_off(state: State, job: Job) -> bool:
    """Whether the weights had forgotten the job's subjects until somebody was brought back."""
    subjects = frozenset(job.erasing)
    number: int | None = state.active
    while subjects and number is not None:
        if subjects <= state.subjects_erased_by_weights(number):
            return False
        parent = state.releases[number].parent
        if parent is not None and subjects <= state.subjects_erased_by_weights(parent):
            return bool(_concealed(state, parent) - _concealed(state, number))
        number = parent
    return False


def _concealed(state: State, number: int) -> frozenset[str]:
    return state.releases[number].guard | state.subjects_erased_by_weights(number)


def _was_masked(state: State, subject: str) -> bool:
    """Whether it was, at any time since it was last not concealed. Parents are in the order of
    activation, since a release is activated on its parent alone."""
    number: int | None = state.active
    while number is not None and subject in _concealed(state, number):
        if subject in state.releases[number].guard:
            return True
        number = state.releases[number].parent
    return False


def compaction_to_serve(state: State) -> str | None:
    """The newest adapter that stands for the active stack and was never served, if there is one.

    One that was served and is not now was rolled back, which whoever did it wanted so. One that
    replicas could not build `ATTEMPTS` times is no better the next time.
    """
    stack = state.active_release.adapters
    if state.seal is not None or not stack:
        return None
    waiting = [entry.id for entry in state.adapters.values() if entry.folds == stack]
    for adapter in reversed(waiting):
        releases = releases_of(state, adapter)
        served = any(state.releases[number].activated_at for number in releases)
        if not served and len(releases) < ATTEMPTS:
            return adapter
    return None


def releases_of(state: State, adapter: str) -> list[int]:
    """The releases that have this adapter alone, oldest first."""
    alone = (adapter,)
    return [number for number, release in state.releases.items() if release.adapters == alone]
