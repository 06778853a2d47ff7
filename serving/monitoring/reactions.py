"""Decides on automatic reactions: pure functions of the ledger's state and the evidence.

The record that a reaction writes into the ledger shows that it was made. So nothing is remembered
here, and neither a restart nor a second call makes a reaction twice:

    leak:  a remark in the ledger, once for each stack. The guard needs no reaction: the ledger
           accepts no release that does not mask every class under erasure.
    drift: a rollback to the release before, once for each release that brought an adapter, and
           never within the hold-off after another automatic rollback. There is no reaction if an
           operator rolled back to the active stack, or if drift was proven before the new adapter
           too. A rollback keeps every guard.
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
"""Seconds to wait after a rollback that failed; doubled with each one. Every try defines a release,
and releases stay in the ledger for good."""


@dataclass(frozen=True)
class Rollback:
    """A rollback to make, if the active stack is still that of release `instead_of`."""

    to: int
    instead_of: int
    reason: str
    request_id: str


@dataclass(frozen=True)
class Remark:
    """A remark to write into the ledger."""

    text: str
    since: int
    """Sequence number of the record to search from: a later record with the same `request_id` shows
    that the remark was written already."""
    request_id: str


class Operator(Protocol):
    """What carries out reactions: control, through its client."""

    def roll_back(self, rollback: Rollback, author: Author) -> bool:
        """Make the rollback; False when control rejected it."""

    def remark(self, remark: Remark, author: Author) -> None:
        """Write the remark into the ledger."""

    def figures(self, *, timeout: float) -> ControlFigures:
        """Control's numbers for the metrics page. `timeout`: seconds."""


def brought_by(state: State) -> Release | None:
    """The release that made the active stack by adding an adapter; None if a rollback or a
    compaction made it. Releases that only mask more don't count."""
    release = state.active_release
    while release.kind == "guard" and release.parent is not None:
        release = state.releases[release.parent]
    return release if release.kind == "adapter" else None


def due_rollback(
    state: State, proof: Proof, before: Proof | None, *, now: datetime, hold_off_s: float
) -> Rollback | None:
    """The rollback to make now because drift is proven; None if there is none.

    `proof` is about the active stack, `before` about the stack below its newest adapter.
    """
    release = brought_by(state)
    if release is None or state.suspended or release.parent is None:
        return None
    if proof.stack != stack_name(state.active_release.adapters):
        return None  # it is about another release: the replicas still have to swap
    drift = proof.findings["shadow"].drift_evidence_log10
    if drift < PROOF:
        return None
    if before is not None and before.findings["shadow"].drift_evidence_log10 >= PROOF:
        return None  # the older stack is no better
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
    """The remark on a proven leak of the active stack; None if none is proven. It may have been
    written already."""
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
