"""The fold of releases: defined, rolled back, activated, confirmed, tried on a share of requests.

As in `rules`: pure, and a record that breaks a rule raises `ConflictError`. A trial (canary)
exposes nobody: its release was defined for a job on the active release, and masks and erases
everything that the active one does. Activating any release ends the trial.
"""

from collections.abc import Iterable
from dataclasses import replace

from registry.errors import ConflictError
from registry.fold.compaction import check_compaction
from registry.fold.jobs import adapter_to_publish, check_adapters_known, check_backbone, job_named
from registry.fold.state import Job, Release, State, Trial
from registry.records.record import Record
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack


def published(state: State, record: Record, body: Published) -> State:
    """A release is defined, for a job or as a compaction; nothing serves it yet."""
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


def rolled_back(state: State, record: Record, body: RolledBack) -> State:
    """A release is defined with the adapters of an earlier one."""
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


def activated(state: State, record: Record, body: Activated) -> State:
    """A release becomes the one to serve."""
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
        trial=None,
    )


def confirmed(state: State, record: Record, body: Confirmed) -> State:
    """Every replica serves a release, so its jobs are done, and their subjects guarded."""
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


def trial(state: State, record: Record, body: Canary) -> State:
    """A trial begins, or ends without an activation."""
    if body.percent == 0:
        return _returned(state, body)
    release = state.releases.get(body.release)
    if release is None:
        raise ConflictError(f"there is no release {body.release}")
    if state.trial is not None:
        raise ConflictError(f"release {state.trial.release} is on trial already")
    if release.kind != "adapter" or release.parent != state.active or body.release <= state.active:
        raise ConflictError(
            f"release {body.release} was not defined for a job on the active release "
            f"{state.active}: publish it again"
        )
    if release.returned is not None:
        raise ConflictError(f"release {body.release} was on trial and was returned")
    erased = state.subjects_erased_by_weights
    exposed = (state.erasing | state.active_release.guard) - release.guard
    exposed |= erased(state.active) - erased(body.release)
    if exposed:
        raise ConflictError(
            f"release {body.release} forgets less than the active one: it would expose "
            f"{', '.join(sorted(exposed)[:5])}"
        )
    return replace(state, trial=Trial(body.release, body.percent, record.seq, record.at))


def _returned(state: State, body: Canary) -> State:
    if state.trial is None or state.trial.release != body.release:
        raise ConflictError(f"release {body.release} is not on trial")
    release = replace(state.releases[body.release], returned=body.detail)
    return replace(state, trial=None, releases=state.releases.with_entry(release.number, release))


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
    """The guard, as an object that the state already holds if there is an equal one. Guards are
    long and rarely change; without this each of thousands of releases would hold a copy."""
    guard = frozenset(subjects)
    for same in (state.erasing, state.active_release.guard):
        if guard == same:
            return same
    return guard
