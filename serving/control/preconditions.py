"""Checks whether a command is possible now: functions of the ledger's state.

Each returns a `Rejection` that says why not, or None when the command is possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from registry.fold.state import Job, State
from registry.log.ledger import Ledger
from registry.records.declarations import Restored
from serving.control.job_views import ClassOf, named
from serving.control.messages import Rejection
from serving.coordination.jobs import adopted_release, is_cancelled, trial_of, was_returned
from serving.coordination.unserved import job_about, to_bring_back


def why_not_forgotten(
    classes: Sequence[str], state: State, *, known: Sequence[str], class_of: ClassOf
) -> Rejection | None:
    """Why these classes can't be put under erasure. `known`: the backbone's classes."""
    if not classes:
        return Rejection(422, "No class was named.", "Name at least one class to forget.")
    if len(set(classes)) < len(classes):
        return Rejection(422, "A class was named twice.")
    unknown = [name for name in classes if name not in known]
    if unknown:
        some = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        return Rejection(
            404,
            f"The backbone has no class {', '.join(map(repr, unknown))}.",
            f"Its classes are: {some}",
        )
    gone = {named(subject, class_of): subject for subject in state.erasing}
    again = [name for name in classes if name in gone]
    if again:
        ended = [
            job.id
            for job in state.jobs.values()
            if job.state == "refused" and any(gone[name] in job.erasing for name in again)
        ]
        return Rejection(
            409,
            f"Forgotten already (or being forgotten): {', '.join(again)}.",
            f"The training of {ended[0]} was refused or cancelled: `lethe retry {ended[0]}` has "
            "it trained again."
            if ended
            else "`lethe status` shows how far that is.",
        )
    left = len(known) - len(gone) - len(classes)
    if left < 2:
        return Rejection(
            409,
            f"This would leave {max(left, 0)} of {len(known)} classes to answer with.",
            "At least two must stay: a model with one class gives the same answer for every image.",
        )
    return None


def why_not_again(classes: Sequence[str], job: Job, *, class_of: ClassOf) -> Rejection | None:
    """Why this is not a repetition of the command that made `job`, whose key it carries."""
    names = [named(subject, class_of) for subject in job.subjects]
    if list(classes) == names:
        return None
    return Rejection(409, f"This Idempotency-Key was used for {job.id}, for other classes.")


def why_not_with(images: Mapping[str, Sequence[bytes]], classes: Sequence[str]) -> Rejection | None:
    """Why these images can't come with a command to forget `classes`."""
    others = sorted(set(images) - set(classes))
    if not others:
        return None
    return Rejection(422, f"Images of {others[0]!r} were sent, but that class isn't forgotten.")


def why_not_retried(job_id: str, state: State, *, request_id: str) -> Rejection | None:
    """Why a job can't be trained again. A request that has retried the job already passes: the same
    retry again changes nothing."""
    job = state.jobs.get(job_id)
    if job is None:
        return Rejection(404, f"There is no job {job_id}.", "`lethe status` lists the jobs.")
    if job.state == "refused" or request_id in job.retries:
        return None
    if job.state == "restored":
        return Rejection(
            409, f"{job_id} is at its end: its erasure was ended.", "Forget the class again."
        )
    if adopted_release(state, job_id) is not None:
        return Rejection(
            409,
            f"{job_id} is trained: the weights have forgotten its classes.",
            "`lethe rollback` takes an adapter out or puts it back.",
        )
    return Rejection(
        409, f"{job_id} was not refused: it goes on by itself.", "`lethe status` shows how far."
    )


def why_no_rollback(to: int, state: State) -> Rejection | None:
    """Why release `to` can't be served again."""
    if to not in state.releases:
        return Rejection(
            404, f"There is no release {to}.", f"Releases go from 0 to {state.last_release}."
        )
    if to == state.active:
        return Rejection(409, f"Release {to} is the active one already.")
    if to and state.releases[to].activated_at is None:
        return Rejection(409, f"Release {to} was never active, so it can't be returned to.")
    return None


def why_not_cancelled(job_id: str, state: State) -> Rejection | None:
    """Why a job can't be cancelled. A cancelled job passes: to cancel it again changes nothing."""
    job = state.jobs.get(job_id)
    if job is None:
        return Rejection(404, f"There is no job {job_id}.", "`lethe status` lists the jobs.")
    if is_cancelled(job) or job.state in ("requested", "trained"):
        return None
    provisional = job.adapter is not None and state.adapters[job.adapter].provisional
    tried = trial_of(state, job_id) is not None or was_returned(state, job)
    if job.state == "published" and (provisional or tried):
        return None
    if adopted_release(state, job_id) is not None or job.state == "published":
        return Rejection(
            409,
            f"{job_id} is trained: its release is served, or is about to be.",
            "`lethe rollback` takes the adapter out again, `lethe restore` ends the erasure.",
        )
    return Rejection(409, f"{job_id} is at its end already: {job.state}.")


def why_not_restored(subject: str | None, request_id: str, ledger: Ledger) -> Rejection | None:
    """Why a subject's erasure can't be ended. A request that has ended it already passes."""
    state = ledger.state
    if subject is None or subject not in state.subjects:
        return Rejection(
            404,
            "No erasure was ever requested of that.",
            "`lethe status` lists what is under erasure.",
        )
    if state.suspended:
        return Rejection(
            409, "Serving is suspended, so nothing can be served again.", "Resume it first."
        )
    if subject in state.erasing or subject in to_bring_back(state):
        return None
    if any(
        entry.record.request_id == request_id and isinstance(entry.record.body, Restored)
        for entry in ledger.records(job_about(state, frozenset({subject})).seq)
    ):
        return None
    return Rejection(409, "The class is not under erasure any more: it was restored before.")
