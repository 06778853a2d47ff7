"""What the monitor is sent and asked: plain values that cross processes."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.metrics_core import Metric as Family

from serving.monitoring.posture import Posture
from serving.monitoring.tally import Counts, Findings, Source, Targets


@dataclass(frozen=True)
class OnTrial:
    """A release that answers a share of the requests, and what its evidence is against."""

    release: int
    stack: str
    targets: Targets


@dataclass(frozen=True)
class Snapshot:
    """One replica's numbers as they stand now."""

    families: list[Family]
    taken: float
    """When, in seconds on a clock of the replica's."""
    release: int
    stack: str
    """Name of the release's stack of adapters."""
    targets: Targets
    """For that stack."""
    counts: dict[str, Counts]
    """Since the replica's start, by stack."""
    expected: int
    """Replicas that the settings ask for."""
    posture: Posture = Posture()
    forgotten: int = 0
    """Classes that the release's weights were taught to forget."""
    trial: OnTrial | None = None


@dataclass(frozen=True)
class ProbeSnapshot:
    """What the probes of canary classes found, as it stands now."""

    families: list[Family]
    taken: float
    """When, in seconds on a clock of the sender's."""
    counts: dict[str, Counts]
    """Since the sender's start, by stack."""


@dataclass(frozen=True)
class Proof:
    """What is known of the active release's stack, for whoever reacts to it."""

    release: int
    stack: str
    targets: Targets
    findings: dict[Source, Findings]
    counts: dict[Source, Counts]


@dataclass(frozen=True)
class ControlFigures:
    """What the metrics page shows of commands, jobs and trainings."""

    pending: int
    """Jobs that are not at their end."""
    oldest_pending: float
    """Unix time of the oldest one's request; 0 where there is none."""
    accepted: int
    done: int
    refused: int
    seq: int
    """Number of the newest record of the ledger."""
    active: int
    """The active release."""
    suspended: bool
    under_erasure: int
    forgotten: int
    """Subjects that the active weights were taught to forget."""
    read_at: float
    """Unix time at which the ledger was read."""
    families: list[Family]
    """The trainer's rows."""
