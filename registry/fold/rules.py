"""The fold: how each record changes the state, and which records can't be.

Pure. A record that breaks a rule is a `ConflictError`, whoever signed it: the ledger refuses to
append it and, on reading, refuses the log that holds it. The rules that everything else hangs on:
release numbers are dense and only grow, and no release that leaves a subject under erasure
unmasked can be defined or made active.
"""

from collections.abc import Iterable
from dataclasses import replace

from registry.errors import ConflictError
from registry.fold.compaction import check_compaction, compacted
from registry.fold.declarations import (
    check_not_sealed,
    hold,
    restored,
    sealed,
    suspended,
    tombstone,
)
from registry.fold.jobs import (
    adapter_to_publish,
    check_adapters_known,
    check_backbone,
    job_named,
    refused,
    requested,
    retried,
    trained,
)
from registry.fold.state import Job, Release, State
from registry.fold.trials import canary
from registry.records.bodies import (
    Activated,
    Compacted,
    Confirmed,
    Note,
    Published,
    Refused,
    Requested,
    RolledBack,
    Trained,
)
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.record import Record
from registry.records.trials import Canary


def apply(state: State, record: Record, *, digest: str) -> State:
    """The state after `record`, whose stored bytes have the digest `digest`.

    Raises: ConflictError when the record can't follow; the message says which rule it breaks.
    """
    if record.seq != state.seq + 1 or record.prev != state.head:
        raise ConflictError(
            f"record {record.seq} after {record.prev} can't follow record {state.seq}, {state.head}"
        )
    return replace(_changed(state, record), seq=record.seq, head=digest)


def _changed(state: State, record: Record) -> State:
    check_not_sealed(state, record.body)
    match record.body:
        case Requested() as body:
            return requested(state, record, body)
        case Trained() as body:
            return trained(state, record, body)
        case Compacted() as body:
            return compacted(state, record, body)
        case Refused() as body:
            return refused(state, body)
        case Published() as body:
            return _published(state, record, body)
        case RolledBack() as body:
            return _rolled_back(state, record, body)
        case Activated() as body:
            return _activated(state, record, body)
        case Confirmed() as body:
            return _confirmed(state, record, body)
        case Canary() as body:
            return canary(state, record, body)
        case Retried() as body:
            return retried(state, record, body)
        case Restored() as body:
            return restored(state, record, body)
        case Tombstone() as body:
            return tombstone(state, body)
        case LegalHold() as body:
            return hold(state, body)
        case Suspended() as body:
            return suspended(state, body)
        case Sealed() as body:
            return sealed(state, record, body)
        case Note():
            return state


def _published(state: State, record: Record, body: Published) -> State:
    if body.job is None:
        check_compaction(state, body)
        return _with_new_release(state, _published_release(state, record, body), body.backbone)
    job = job_named(state, body.job)
    expected = below = state.active_release.adapters
    jobs: tuple[Job, ...] = ()
    if body.kind == "adapter":
        entry = adapter_to_publish(state, job)
        below = state.stack_for(job.id)
        if entry.stack != below:
            raise ConflictError(
                f"the adapter of {job.id} was trained on another stack than that of the active "
                f"release {state.active}; train it again"
            )
        expected = (*below, entry.id)
        jobs = tuple(state.jobs[name] for name in entry.jobs)
    if body.adapters != expected:
        raise ConflictError(
            f"a release of kind {body.kind} for {job.id} has {len(below)} adapters of the "
            f"active release{' and its own' if body.kind == 'adapter' else ''}; this one has others"
        )
    release = _published_release(state, record, body)
    defined = _with_new_release(state, release, body.backbone)
    named = {job.id: replace(job, state="published", release=body.release) for job in jobs}
    return replace(defined, jobs=state.jobs.with_entries(named) if named else state.jobs)


def _published_release(state: State, record: Record, body: Published) -> Release:
    release = Release(
        number=body.release,
        kind=body.kind,
        adapters=body.adapters,
        guard=_shared_guard(state, body.guard),
        parent=body.parent,
        job=body.job,
        seq=record.seq,
        at=record.at,
        actor=record.actor,
        request_id=record.request_id,
    )
    unknown = release.guard - state.erasing - state.active_release.guard
    if unknown:
        raise ConflictError(f"the guard has subjects that no request names: {sorted(unknown)[:5]}")
    return release


def _rolled_back(state: State, record: Record, body: RolledBack) -> State:
    target = _release(state, body.to)
    if body.to == state.active:
        raise ConflictError(f"release {body.to} is the active one")
    if body.to != 0 and target.activated_at is None:
        raise ConflictError(f"release {body.to} was never active, so it can't be gone back to")
    if body.adapters != target.adapters or set(body.guard) != state.erasing:
        raise ConflictError(
            f"a rollback to release {body.to} has that release's adapters and masks every subject "
            "under erasure and no other; this one doesn't"
        )
    release = Release(
        number=body.release,
        kind="rollback",
        adapters=target.adapters,
        guard=_shared_guard(state, body.guard),
        parent=body.parent,
        to=body.to,
        seq=record.seq,
        at=record.at,
        actor=record.actor,
        request_id=record.request_id,
    )
    return _with_new_release(state, release, body.backbone)


def _activated(state: State, record: Record, body: Activated) -> State:
    release = _release(state, body.release)
    if release.number <= state.active:
        raise ConflictError(
            f"release {release.number} can't follow release {state.active}: numbers only grow; "
            "to go back, roll back"
        )
    if release.parent != state.active:
        raise ConflictError(
            f"release {release.number} was built on release {release.parent}, but release "
            f"{state.active} is active now; publish it again"
        )
    if release.returned is not None:
        raise ConflictError(f"release {release.number} was on trial and was returned")
    _check_guard(state, release.guard, number=release.number)
    release = replace(release, activated_at=record.at)
    return replace(
        state,
        releases=state.releases.with_entry(release.number, release),
        active=release.number,
        canary=None,
    )


def _confirmed(state: State, record: Record, body: Confirmed) -> State:
    release = _release(state, body.release)
    if release.activated_at is None:
        raise ConflictError(f"release {release.number} was never activated")
    if release.number <= state.confirmed:
        raise ConflictError(
            f"release {state.confirmed} is confirmed, so {release.number} can't be any more"
        )
    changed: dict[str, Job] = {}
    for id, entry in state.adapters_in_force(release.number).items():
        if entry.provisional:
            continue
        for job in (state.jobs[name] for name in entry.jobs):
            if job.adapter == id and job.state in ("trained", "published"):
                changed[job.id] = replace(job, state="done", done_at=record.at)
    unguarded = []
    for name in state.unguarded:
        job = changed.get(name, state.jobs[name])
        if release.guard.issuperset(job.erasing):
            changed[name] = replace(job, guarded=True)
        else:
            unguarded.append(name)
    release = replace(release, confirmed_at=record.at, confirmed_ms=body.ms)
    return replace(
        state,
        releases=state.releases.with_entry(release.number, release),
        confirmed=release.number,
        jobs=state.jobs.with_entries(changed) if changed else state.jobs,
        unguarded=tuple(unguarded),
    )


def _with_new_release(state: State, release: Release, backbone: str) -> State:
    if release.number != state.last_release + 1:
        raise ConflictError(
            f"the next release is {state.last_release + 1}, not {release.number}: numbers have "
            "no gaps"
        )
    if release.parent != state.active:
        raise ConflictError(
            f"a release is built on the active one, {state.active}, not on {release.parent}"
        )
    check_backbone(state, backbone)
    check_adapters_known(state, release.adapters)
    _check_guard(state, release.guard, number=release.number)
    return replace(
        state, backbone=backbone, releases=state.releases.with_entry(release.number, release)
    )


def _check_guard(state: State, guard: frozenset[str], *, number: int) -> None:
    exposed = state.erasing - guard
    if exposed:
        raise ConflictError(
            f"release {number} would unmask {len(exposed)} subjects under erasure: "
            f"{', '.join(sorted(exposed)[:5])}; publish it again"
        )


def _release(state: State, number: int) -> Release:
    if number not in state.releases:
        raise ConflictError(f"there is no release {number}; the last one is {state.last_release}")
    return state.releases[number]


def _shared_guard(state: State, subjects: Iterable[str]) -> frozenset[str]:
    """The guard as an object that the state holds already, if equal: guards are long and rarely
    change, and thousands of releases would each hold their own."""
    guard = frozenset(subjects)
    for same in (state.erasing, state.active_release.guard):
        if guard == same:
            return same
    return guard
