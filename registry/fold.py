"""The fold: how each record changes the state, and which records can't be.

Pure. A record that breaks a rule is a `ConflictError`, whoever signed it: the ledger refuses to
append it and, on reading, refuses the log that holds it. The rules that everything else hangs on:
release numbers are dense and only grow, and no release that leaves a subject under erasure
unmasked can be defined or made active.
"""

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from registry.bodies import (
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
from registry.declarations import LegalHold, Restored, Sealed, Suspended, Tombstone
from registry.errors import ConflictError
from registry.fold_compaction import check_compaction, compacted
from registry.fold_declarations import (
    check_not_sealed,
    hold,
    restored,
    sealed,
    suspended,
    tombstone,
)
from registry.fold_trials import canary
from registry.record import Record
from registry.state import AdapterEntry, Job, Refusal, Release, State
from registry.trials import Canary


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
            return _requested(state, record, body)
        case Trained() as body:
            return _trained(state, record, body)
        case Compacted() as body:
            return compacted(state, record, body)
        case Refused() as body:
            return _refused(state, body)
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


def _requested(state: State, record: Record, body: Requested) -> State:
    again = [subject for subject in body.subjects if subject in state.erasing]
    if again:
        raise ConflictError(f"already under erasure: {', '.join(again)}")
    nameless = [s for s in body.subjects if "subject_map" in state.deleted.get(s, ())]
    if nameless:
        raise ConflictError(
            f"a tombstone says that no class belongs to {', '.join(nameless)} any more: assign "
            "the class a new id"
        )
    if body.job in state.jobs:
        raise ConflictError(f"the job {body.job} exists already")
    if record.request_id in state.requests:
        job_before = state.requests[record.request_id]
        raise ConflictError(f"the request {record.request_id} exists already, as {job_before}")
    _check_backbone(state, body.backbone)
    job = Job(
        id=body.job,
        subjects=body.subjects,
        seq=record.seq,
        at=record.at,
        actor=record.actor,
        reason=record.reason,
        request_id=record.request_id,
        canary=body.canary,
    )
    return replace(
        state,
        backbone=body.backbone,
        erasing=state.erasing.union(body.subjects),
        subjects=state.subjects.union(body.subjects),
        jobs=state.jobs.with_entry(job.id, job),
        requests=state.requests.with_entry(record.request_id, job.id),
        unguarded=(*state.unguarded, job.id),
    )


def _trained(state: State, record: Record, body: Trained) -> State:
    job = _job_to_train(state, body.job)
    if set(body.subjects) != set(job.erasing):
        raise ConflictError(f"the adapter's subjects are not those that {job.id} is to erase")
    _check_adapters_known(state, body.stack)
    if body.adapter in body.stack:
        raise ConflictError(f"the adapter {body.adapter} can't be in its own stack")
    known = state.adapters.get(body.adapter)
    if known is not None and (known.job, known.stack, known.subjects, known.provisional) != (
        job.id,
        body.stack,
        job.erasing,
        body.provisional,
    ):
        raise ConflictError(
            f"the adapter {body.adapter} was recorded before, for {known.job} with another stack "
            "or other subjects"
        )
    entry = AdapterEntry(
        id=body.adapter,
        files=MappingProxyType(dict(body.files)),
        subjects=job.erasing,
        stack=body.stack,
        report=body.report,
        job=job.id,
        seq=record.seq,
        at=record.at,
        provisional=body.provisional,
    )
    job = replace(job, state="trained", adapter=entry.id, refusal=None, done_at=None)
    return replace(
        state,
        jobs=state.jobs.with_entry(job.id, job),
        adapters=state.adapters.with_entry(entry.id, entry),
    )


def _refused(state: State, body: Refused) -> State:
    job = _job_to_train(state, body.job)
    refusal = Refusal(body.stage, body.detail, body.report)
    job = replace(job, state="refused", refusal=refusal, done_at=None)
    return replace(state, jobs=state.jobs.with_entry(job.id, job))


def _published(state: State, record: Record, body: Published) -> State:
    if body.job is None:
        check_compaction(state, body)
        return _with_new_release(state, _published_release(state, record, body), body.backbone)
    job = _job(state, body.job)
    expected = below = state.active_release.adapters
    if body.kind == "adapter":
        if job.adapter is None or job.state not in ("trained", "published"):
            raise ConflictError(f"{job.id} is {job.state} and has no adapter to publish")
        below = state.stack_for(job.id)
        if state.adapters[job.adapter].stack != below:
            raise ConflictError(
                f"the adapter of {job.id} was trained on another stack than that of the active "
                f"release {state.active}; train it again"
            )
        if state.adapters[job.adapter].subjects != job.erasing:
            raise ConflictError(
                f"the adapter of {job.id} erases subjects that were restored; train it again"
            )
        expected = (*below, job.adapter)
        job = replace(job, state="published", release=body.release)
    if body.adapters != expected:
        raise ConflictError(
            f"a release of kind {body.kind} for {job.id} has {len(below)} adapters of the "
            f"active release{' and its own' if body.kind == 'adapter' else ''}; this one has others"
        )
    release = _published_release(state, record, body)
    defined = _with_new_release(state, release, body.backbone)
    return replace(defined, jobs=state.jobs.with_entry(job.id, job))


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
        if entry.job is None or entry.provisional:
            continue
        job = state.jobs[entry.job]
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
    _check_backbone(state, backbone)
    _check_adapters_known(state, release.adapters)
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


def _check_backbone(state: State, backbone: str) -> None:
    if state.backbone not in (None, backbone):
        raise ConflictError(
            f"this registry belongs to the backbone {state.backbone}, found {backbone}; another "
            "backbone needs a registry of its own"
        )


def _check_adapters_known(state: State, adapters: Iterable[str]) -> None:
    unknown = [adapter for adapter in adapters if adapter not in state.adapters]
    if unknown:
        raise ConflictError(f"no record defines the adapters {', '.join(unknown)}")


def _job_to_train(state: State, name: str) -> Job:
    """A job may be trained until its adapter is served, after a refusal or a rollback too, and
    beyond that if this one is provisional."""
    job = _job(state, name)
    if job.state == "restored":
        raise ConflictError(f"all subjects of {name} were restored; there is nothing to train")
    served = state.adapters_in_force(state.active).get(job.adapter or "")
    if served is not None and not served.provisional:
        raise ConflictError(f"the adapter of {name} is being served; there is nothing to train")
    return job


def _job(state: State, name: str) -> Job:
    if name not in state.jobs:
        raise ConflictError(f"there is no job {name}")
    return state.jobs[name]


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
