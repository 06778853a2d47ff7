"""Every act that is recorded, one function each. With `publish_compaction`, `publish_declarations`
and `publish_trials`, the only module that appends to the ledger.

Each builds its record from the state that it will follow, signs it with `signer`, and returns
what the fold made of it. `actor`, `reason` and `request_id` say who did it, why, and on which
request; none of them may carry a class name, for the log can't be edited.

All raise ConflictError when the state doesn't allow the act, NotFoundError for a job or release
that doesn't exist, FormatError for an over-long or unprintable text, TrustError when `signer` may
not do this, and StoreError when the storage fails.
"""

from collections.abc import Callable, Mapping, Sequence

from registry.errors import ConflictError, NotFoundError
from registry.fold.state import AdapterEntry, Job, Release, State
from registry.log.adapters import new_files
from registry.log.ledger import Ledger
from registry.records.bodies import (
    Activated,
    Body,
    Confirmed,
    MemberOutcome,
    Published,
    Refused,
    ReleaseKind,
    Requested,
    RolledBack,
    Trained,
)
from registry.records.declarations import (
    Retried,
)
from registry.records.record import Draft, digest_of
from registry.signing.keys import Signer


def request_forget(
    ledger: Ledger,
    signer: Signer,
    *,
    subjects: Sequence[str],
    backbone: str,
    actor: str,
    reason: str,
    request_id: str,
    canary: int | None = None,
    batch: bool = False,
) -> Job:
    """Put subjects under erasure. The same `request_id` again returns the job of the first time.

    Needs the role operator. `backbone` is its fingerprint ("sha256:<hex>"), `canary` the percentage
    of requests that the adapter is to be tried on first. `batch`: the job may be trained together
    with others that say so.
    """

    def make(state: State) -> Draft | None:
        known = state.requests.get(request_id)
        if known is not None:
            if set(state.jobs[known].subjects) != set(subjects):
                raise ConflictError(
                    f"the request {request_id} was made before, as {known}, for other subjects"
                )
            return None
        body = Requested(
            job=f"job-{len(state.jobs) + 1}",
            subjects=tuple(subjects),
            backbone=backbone,
            canary=canary,
            batch=batch,
        )
        return Draft(body, actor, reason, request_id)

    state = ledger.append(make, signer)
    return state.jobs[state.requests[request_id]]


def record_trained(
    ledger: Ledger,
    signer: Signer,
    *,
    job: str,
    files: Mapping[str, bytes],
    stack: Sequence[str],
    report: bytes,
    actor: str,
    reason: str,
    request_id: str,
    provisional: bool = False,
    others: Sequence[str] = (),
) -> AdapterEntry:
    """Store a job's adapter and its report, then record them. Needs the role publisher.

    `files` are the adapter's files by name, `stack` the ids of the adapters that it was trained
    on top of, lowest first. `provisional`: until the job has another. `others`: jobs that were
    trained with it as one task.
    """
    new = new_files(files, report)

    def make(state: State) -> Draft:
        body = Trained(
            job=job,
            adapter=new.adapter,
            files=new.refs,
            subjects=tuple(s for name in (job, *others) for s in _job(state, name).erasing),
            stack=tuple(stack),
            report=new.report,
            provisional=provisional,
            others=tuple(others),
        )
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer, blobs=new.blobs).adapters[new.adapter]


def refuse(
    ledger: Ledger,
    signer: Signer,
    *,
    job: str,
    stage: str,
    detail: str,
    report: bytes | None,
    actor: str,
    reason: str,
    request_id: str,
    others: Sequence[str] = (),
    still: Callable[[State], bool] = lambda _: True,
) -> Job:
    """Record that a job's adapter wasn't accepted; its subjects stay under erasure and masked.

    Needs the role publisher. The job may be trained again. With `others`, trained with it as one
    task, nothing is refused but that: each is trained alone then. ConflictError too where `still`
    says no of the state that the record would follow, which may be newer than the caller's.
    """
    blobs = {} if report is None else {digest_of(report): report}
    report_digest = next(iter(blobs), None)

    def make(state: State) -> Draft:
        for name in (job, *others):
            _job(state, name)
        if not still(state):
            raise ConflictError(f"{job} is {state.jobs[job].state} by now")
        body = Refused(job, stage, detail, report_digest, tuple(others))
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer, blobs=blobs).jobs[job]


def retry(
    ledger: Ledger, signer: Signer, *, job: str, actor: str, reason: str, request_id: str
) -> Job:
    """Have a refused or cancelled job trained again. The same `request_id` again does nothing.

    Needs the role operator.
    """

    def make(state: State) -> Draft | None:
        if request_id in _job(state, job).retries:
            return None
        return Draft(Retried(job), actor, reason, request_id)

    return ledger.append(make, signer).jobs[job]


def publish_release(
    ledger: Ledger,
    signer: Signer,
    *,
    kind: ReleaseKind,
    job: str,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    """Define the next release for a job, on top of the active one. Needs the role publisher.

    "guard": the active adapters. "adapter": those and the job's own, which takes the place of a
    provisional one. Either way every subject
    under erasure is masked.
    """

    def make(state: State) -> Draft:
        adapters = state.active_release.adapters
        own = _job(state, job).adapter
        if kind == "adapter" and own is not None:
            adapters = (*state.stack_for(job), own)
        body = Published(
            release=state.last_release + 1,
            kind=kind,
            backbone=_backbone(state),
            adapters=adapters,
            guard=tuple(sorted(state.erasing)),
            parent=state.active,
            job=job,
        )
        return Draft(body, actor, reason, request_id)

    return _newest_release(ledger.append(make, signer))


def roll_back(
    ledger: Ledger,
    signer: Signer,
    *,
    to: int,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    """Define the next release with the adapters of release `to`. Needs the role operator.

    It masks every subject under erasure, so that going back for quality re-exposes nobody; only
    what was restored is masked no longer. 0 is the bare backbone.
    """

    def make(state: State) -> Draft:
        target = _release(state, to)
        body = RolledBack(
            release=state.last_release + 1,
            to=to,
            backbone=_backbone(state),
            adapters=target.adapters,
            guard=tuple(sorted(state.erasing)),
            parent=state.active,
        )
        return Draft(body, actor, reason, request_id)

    return _newest_release(ledger.append(make, signer))


def activate(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    """Make a defined release the one that replicas serve. Needs the role operator.

    Raises ConflictError too when subjects came under erasure, or another release became active,
    since it was defined: publish it again.
    """
    return _on_release(ledger, signer, Activated(release), release, actor, reason, request_id)


def confirm(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    members: Mapping[str, MemberOutcome],
    ms: float,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    """Record that every member serves an active release, or has lost its lease, after `ms`
    milliseconds. Needs the role operator."""
    body = Confirmed(release, dict(members), ms)
    return _on_release(ledger, signer, body, release, actor, reason, request_id)


def _on_release(
    ledger: Ledger,
    signer: Signer,
    body: Body,
    release: int,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    def make(state: State) -> Draft:
        _release(state, release)
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer).releases[release]


def _newest_release(state: State) -> Release:
    return state.releases[state.last_release]


def _job(state: State, name: str) -> Job:
    if name not in state.jobs:
        raise NotFoundError(f"there is no job {name}")
    return state.jobs[name]


def _release(state: State, number: int) -> Release:
    if number not in state.releases:
        raise NotFoundError(
            f"there is no release {number}; there are 0 (the bare backbone) to {state.last_release}"
        )
    return state.releases[number]


def _backbone(state: State) -> str:
    if state.backbone is None:
        raise ConflictError("nothing was ever requested, so there is nothing to release")
    return state.backbone
