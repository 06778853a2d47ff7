"""The fold of what people declare: restored, tombstone, legal_hold, suspended, sealed.

As in `rules`: pure, and a record that breaks a rule raises `ConflictError`.
"""

from collections.abc import Iterable
from dataclasses import replace

from registry.errors import ConflictError
from registry.fold.state import Job, Seal, State
from registry.records.bodies import Body, Note
from registry.records.declarations import (
    Deletable,
    LegalHold,
    Restored,
    Sealed,
    Suspended,
    Tombstone,
)
from registry.records.record import Record


def check_not_sealed(state: State, body: Body) -> None:
    """After the seal only tombstones, legal holds and notes may follow. Raises: ConflictError."""
    if state.seal is not None and not isinstance(body, Tombstone | LegalHold | Note):
        raise ConflictError(
            f"this registry was sealed into the backbone {state.seal.backbone} by record "
            f"{state.seal.seq}; go on in the registry of that backbone"
        )


def restored(state: State, record: Record, body: Restored) -> State:
    """The subjects leave erasure. Their jobs go on for the subjects that are left, or end."""
    unknown = [subject for subject in body.subjects if subject not in state.erasing]
    if unknown:
        raise ConflictError(f"not under erasure: {', '.join(unknown)}")
    changed: dict[str, Job] = {}
    for job in state.jobs.values():
        ended = job.restored.union(set(body.subjects).intersection(job.subjects))
        if ended == job.restored:
            continue
        job = replace(job, restored=ended)
        if not job.erasing:
            job = replace(job, state="restored", restored_at=record.at)
        changed[job.id] = job
    jobs = state.jobs.with_entries(changed)
    return replace(
        state,
        erasing=state.erasing.difference(body.subjects),
        jobs=jobs,
        unguarded=tuple(name for name in state.unguarded if jobs[name].erasing),
    )


def tombstone(state: State, body: Tombstone) -> State:
    """Objects of the subjects are gone."""
    check_tombstone(state, body)
    deleted = {
        subject: state.deleted.get(subject, frozenset[Deletable]()).union(body.objects)
        for subject in body.subjects
    }
    return replace(state, deleted=state.deleted.with_entries(deleted))


def check_tombstone(state: State, body: Tombstone) -> None:
    """Refuse to delete what must be kept. The entry in the subject map goes last, because replicas
    need it to mask.

    Raises: ConflictError.
    """
    _check_known(state, body.subjects)
    held = [subject for subject in body.subjects if subject in state.held]
    if held:
        raise ConflictError(f"under a legal hold: {', '.join(held)}; lift it first")
    if "subject_map" in body.objects:
        in_use = [subject for subject in body.subjects if subject in state.subjects_in_use]
        if in_use:
            raise ConflictError(
                f"replicas still need the class of {', '.join(in_use)}: restore it and serve a "
                "release without it, or seal the registry first"
            )
    for subject in body.subjects:
        if state.deleted.get(subject, frozenset()).issuperset(body.objects):
            raise ConflictError(f"the {', '.join(body.objects)} of {subject} are gone already")


def hold(state: State, body: LegalHold) -> State:
    _check_known(state, body.subjects)
    placing = body.act == "placed"
    wrong = [subject for subject in body.subjects if (subject in state.held) is placing]
    if wrong:
        raise ConflictError(f"{'already' if placing else 'not'} under a legal hold: {wrong[0]}")
    change = state.held.union if placing else state.held.difference
    return replace(state, held=change(body.subjects))


def suspended(state: State, body: Suspended) -> State:
    suspending = body.state == "suspended"
    if state.suspended is suspending:
        raise ConflictError(f"serving is {'suspended already' if suspending else 'not suspended'}")
    return replace(state, suspended=suspending)


def sealed(state: State, record: Record, body: Sealed) -> State:
    """The active, confirmed release became a backbone that knows nobody under erasure."""
    if not body.release == state.active == state.confirmed:
        raise ConflictError(
            f"only the active and confirmed release can be sealed: {state.active} is active, "
            f"{state.confirmed} confirmed, and this is {body.release}"
        )
    if not state.active_release.adapters:
        raise ConflictError(f"release {body.release} has no adapter to fold into a backbone")
    if body.backbone == state.backbone:
        raise ConflictError(f"a sealed backbone is a new one, and {body.backbone} is the old one")
    masked_only = state.erasing - state.subjects_forgotten(body.release)
    if masked_only:
        raise ConflictError(
            f"release {body.release} only masks {', '.join(sorted(masked_only)[:5])}: a sealed "
            "backbone would know them"
        )
    seal = Seal(release=body.release, backbone=body.backbone, seq=record.seq, at=record.at)
    return replace(state, seal=seal)


def _check_known(state: State, subjects: Iterable[str]) -> None:
    unknown = [subject for subject in subjects if subject not in state.subjects]
    if unknown:
        raise ConflictError(f"no request names {', '.join(unknown)}")
