"""What is done, unasked, when live traffic proves something: decided from the ledger and evidence.

Nothing is remembered here. That a reaction was made stands in the ledger, in the record that it
wrote, so neither a restart nor a second look makes it twice:

    leak:  a remark in the ledger, once for each stack. The guard needs no reaction: the ledger
           accepts no release that does not mask every class under erasure.
    drift: a rollback to the release before, once for each release that brought an adapter, and not
           sooner after another one than the hold-off. A stack that an operator went back to, or
           that was as bad before the new adapter, is left alone. A rollback leaves every guard.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from registry.fold.state import Release, State
from serving.coordination.messages import Author
from serving.monitoring.messages import ControlFigures, Proof
from serving.monitoring.tally import SOURCES, stack_name
from serving.monitoring.thresholds import PROOF

ACTOR = "monitor"
RETRY_S = 60.0
"""Doubled with each rollback that was not carried out, to wait before the next: each defines a
release, and releases are for good."""


@dataclass(frozen=True)
class Rollback:
    """A rollback to make. `instead_of`: the release whose stack must still be the active one."""

    to: int
    instead_of: int
    reason: str
    request_id: str


@dataclass(frozen=True)
class Remark:
    """A remark to write into the ledger."""

    text: str
    since: int
    """Number of the record after which the same `request_id` means that it was written."""
    request_id: str


class Operator(Protocol):
    """Whoever carries reactions out: control, through its client."""

    def roll_back(self, rollback: Rollback, author: Author) -> bool:
        """Make the rollback; False when it was refused."""

    def remark(self, remark: Remark, author: Author) -> None:
        """Write the remark into the ledger."""

    def figures(self, *, timeout: float) -> ControlFigures:
        """What the metrics page shows of control."""


def brought_by(state: State) -> Release | None:
    """The release that brought the active stack by adding an adapter; None where the active stack
    came by a rollback or a compaction. Releases that only mask more are looked through."""
    release = state.active_release
    while release.kind == "guard" and release.parent is not None:
        release = state.releases[release.parent]
    return release if release.kind == "adapter" else None


def due_rollback(
    state: State, proof: Proof, before: Proof | None, *, now: datetime, hold_off_s: float
) -> Rollback | None:
    """The rollback that proven drift calls for now, if any.

    `proof` is of the active stack, `before` of the stack below its newest adapter.
    """
    release = brought_by(state)
    if release is None or state.suspended or release.parent is None:
        return None
    if proof.stack != stack_name(state.active_release.adapters):
        return None  # of another release: the replicas are not there yet
    drift = proof.findings["shadow"].drift_evidence_log10
    if drift < PROOF:
        return None
    if before is not None and before.findings["shadow"].drift_evidence_log10 >= PROOF:
        return None  # going back would mend nothing
    own = [made for made in state.releases.values() if made.actor == ACTOR]
    key = f"monitor-drift-{release.number}"
    if any(made.request_id == key and made.activated_at for made in own):
        return None
    tries = [made.at for made in own if made.request_id == key and made.at]
    pause = min(RETRY_S * 2.0 ** min(len(tries), 30), hold_off_s)
    if tries and (now - max(tries)).total_seconds() < pause:
        return None
    last = max((made.activated_at for made in own if made.activated_at), default=None)
    if last is not None and (now - last).total_seconds() < hold_off_s:
        return None
    counts = proof.counts["shadow"]
    return Rollback(
        to=release.parent,
        instead_of=state.active,
        reason=(
            f"drift proven, log10 {drift:.1f} (limit {PROOF:.0f}): {counts.disagreements} of "
            f"{counts.retained} retained samples disagree, target {proof.targets.drift:.3g}"
        ),
        request_id=key,
    )


def stack_before(state: State) -> tuple[int, str] | None:
    """The release before the one that brought the active stack, and its stack's name."""
    release = brought_by(state)
    if release is None or release.parent is None:
        return None
    return release.parent, stack_name(state.releases[release.parent].adapters)


def due_remark(state: State, proof: Proof) -> Remark | None:
    """What a proven leak of the active stack calls for, whether or not it was written already."""
    if proof.stack != stack_name(state.active_release.adapters):
        return None
    proven = [s for s in SOURCES if proof.findings[s].leak_evidence_log10 >= PROOF]
    if not proven:
        return None
    said = "; ".join(
        f"{source} log10 {proof.findings[source].leak_evidence_log10:.1f}, "
        f"{proof.counts[source].leaks} of {proof.counts[source].matches} matches"
        for source in proven
    )
    first = min(
        release.seq
        for release in state.releases.values()
        if release.adapters == state.active_release.adapters
    )
    return Remark(
        text=(
            f"leak proven in release {state.active} ({said}; target {proof.targets.leak:.3g}). "
            f"The guard masks {len(state.active_release.guard)} subjects"
        ),
        since=first,
        request_id=f"monitor-leak-{proof.stack}",
    )
