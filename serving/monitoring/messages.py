"""What other processes send to the monitor and get from it: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.metrics_core import Metric as Family

from serving.monitoring.posture import Posture
from serving.monitoring.tally import Counts, Findings, Source, Targets


@dataclass(frozen=True)
class OnTrial:
    """A release that answers a share of the requests, and the targets of its evidence."""

    release: int
    stack: str
    targets: Targets


@dataclass(frozen=True)
class Snapshot:
    """One replica's current numbers."""

    families: list[Family]
    taken: float
    """When it was taken: seconds on the replica's own clock."""
    release: int
    stack: str
    """Name of the release's stack of adapters."""
    targets: Targets
    """Of that stack."""
    counts: dict[str, Counts]
    """Stack -> counts since the replica's start."""
    expected: int
    """Replicas that the settings ask for."""
    posture: Posture = Posture()
    forgotten: int = 0
    """Classes that the release's weights were taught to forget."""
    trial: OnTrial | None = None


@dataclass(frozen=True)
class ProbeSnapshot:
    """What the probes of canary classes have found so far."""

    families: list[Family]
    taken: float
    """When it was taken: seconds on the sender's own clock."""
    counts: dict[str, Counts]
    """Stack -> counts since the sender's start."""


@dataclass(frozen=True)
class Proof:
    """What the counts prove about a release's stack. Reactions are decided from it."""

    release: int
    stack: str
    targets: Targets
    findings: dict[Source, Findings]
    counts: dict[Source, Counts]


@dataclass(frozen=True)
class ControlFigures:
    """Numbers about commands, jobs and trainings for the metrics page."""

    pending: int
    """Jobs that are not finished."""
    oldest_pending: float
    """Unix time at which the oldest of them was requested; 0: there is none."""
    accepted: int
    done: int
    refused: int
    seq: int
    """Sequence number of the ledger's newest record."""
    active: int
    """The active release."""
    suspended: bool
    under_erasure: int
    forgotten: int
    """Subjects that the active weights were taught to forget."""
    read_at: float
    """Unix time at which the ledger was read."""
    families: list[Family]
    """The trainer's metrics."""
