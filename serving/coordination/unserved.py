"""What the ledger asks to serve and no release serves yet: restored subjects and compactions.

Pure functions of the ledger's state. Restorations and compactions are recorded first; the
coordinator finds them in the ledger and serves them. So they survive a crash in between, and can be
recorded while no server runs.

The record of a restoration (`registry.publish.declarations.restore_subjects`) changes nothing that
is served. A release *conceals* a subject when it masks the subject or its weights erase it; a
release that does neither brings the subject back. For that an adapter may have to leave the stack.
Adapters that were trained on top of it leave too. The other subjects that they erased stay masked
and are trained again.
"""

from __future__ import annotations

from datetime import datetime

from registry.fold.state import Job, State

MOST_DOUBLINGS = 8
"""How often the time between two tries may double: from one lease (8 s) to half an hour."""
ATTEMPTS = 3
"""How many releases are defined for one compaction before it is given up."""


def to_bring_back(state: State) -> frozenset[str]:
    """The restored subjects that no active release has served since they were masked.

    An operator may later roll back to weights that erase a restored subject. That is a choice, and
    such a subject is not brought back again.
    """
    waiting = _concealed(state, state.active) - state.erasing
    return frozenset(subject for subject in waiting if _was_masked(state, subject))


def is_time_to_bring_back(state: State, *, now: datetime, every_s: float) -> bool:
    """Whether `bring_back` may define another release now.

    Releases stay in the ledger for good, and a lasting failure must not fill it. So the wait is
    `every_s` seconds, and doubles with each release that was defined since the active one and was
    never activated.
    """
    last = state.releases[state.last_release].at
    vain = state.last_release - state.active
    if vain == 0 or last is None:
        return True
    return (now - last).total_seconds() > every_s * 2.0 ** min(vain, MOST_DOUBLINGS)


def way_back(state: State) -> int | None:
    """The release whose adapters erase none of the subjects to bring back.

    None when the active adapters erase none of them either, so that a smaller mask is enough.
    """
    waiting = to_bring_back(state)
    if not waiting & state.subjects_erased_by_weights(state.active):
        return None
    return state.release_without(waiting)


def job_about(state: State, subjects: frozenset[str]) -> Job:
    """The newest job that any of `subjects` belongs to. There must be at least one."""
    return max(
        (job for job in state.jobs.values() if not subjects.isdisjoint(job.subjects)),
        key=lambda job: job.seq,
    )


def was_taken_off(state: State, job: Job) -> bool:
    """Whether the job's adapter left the stack because another subject was brought back."""
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
    """Whether an active release masked `subject` since the last one that didn't conceal it.

    Follows the parents, which is the order of activation: a release is only activated while its
    parent is active.
    """
    number: int | None = state.active
    while number is not None and subject in _concealed(state, number):
        if subject in state.releases[number].guard:
            return True
        number = state.releases[number].parent
    return False


def compaction_to_serve(state: State) -> str | None:
    """The newest compaction of the active stack that was never served; None if there is none.

    A compaction that was served before was rolled back by an operator, so it is not served again.
    One that replicas could not build in `ATTEMPTS` releases is given up.
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
    """The releases whose only adapter is this one, oldest first."""
    alone = (adapter,)
    return [number for number, release in state.releases.items() if release.adapters == alone]
