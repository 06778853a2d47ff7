"""The recorded acts about releases: define, roll back, activate, confirm, try on a share."""

from collections.abc import Mapping

from registry.errors import ConflictError, NotFoundError
from registry.fold.state import Release, State
from registry.log.ledger import Ledger
from registry.publish.jobs import known_job
from registry.records.bodies import Body
from registry.records.record import Draft
from registry.records.releases import (
    Activated,
    Canary,
    Confirmed,
    MemberOutcome,
    Published,
    ReleaseKind,
    RolledBack,
)
from registry.signing.keys import Signer


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

    "guard": the active adapters. "adapter": those and the job's own, which replaces a provisional
    one. Either way every subject under erasure is masked.
    """

    def make(state: State) -> Draft:
        adapters = state.active_release.adapters
        own = known_job(state, job).adapter
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

    It masks every subject under erasure, so going back exposes nobody. Only restored subjects are
    no longer masked. 0 is the bare backbone.
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


def activate_release(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    actor: str,
    reason: str,
    request_id: str,
) -> Release:
    """Make a defined release the one that replicas serve. Needs the role operator.

    Also raises ConflictError when subjects came under erasure, or another release became active,
    after it was defined: publish it again.
    """
    return _on_release(ledger, signer, Activated(release), release, actor, reason, request_id)


def confirm_release(
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
    """Record that every member serves an active release or has lost its lease, `ms` milliseconds
    after the command. Needs the role operator."""
    body = Confirmed(release, dict(members), ms)
    return _on_release(ledger, signer, body, release, actor, reason, request_id)


def begin_trial(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    percent: int,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Let a defined release answer `percent` (1 to 99) of the requests. Needs the role operator.
    To promote it, activate it."""
    body = Canary(release, percent, "")
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def end_trial(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    detail: str,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Let the active release answer all requests again; `detail` says why. Needs the role operator.
    The release on trial can't be tried again or activated. If the trial has ended already, nothing
    is recorded."""

    def make(state: State) -> Draft | None:
        if state.trial is None or state.trial.release != release:
            return None
        return Draft(Canary(release, 0, detail), actor, reason, request_id)

    return ledger.append(make, signer)


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
