"""The monitor actor: gathers every replica's numbers, so that one scrape target shows them all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from serving.membership import boot_clock
from serving.metrics import Metrics, merge
from serving.tally import Counts, Tally, Targets

log = logging.getLogger(__name__)

ACTOR = "lethe-monitor"
OUTCOMES = ("accepted", "done", "refused")
STALE_S = 15.0
"""A replica not heard of for this long is no longer shown as serving."""
SAVE_S = 1.0
"""Least time between two writes of the evidence."""


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


class Monitor:
    """Runs as a threaded Ray actor."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = boot_clock) -> None:
        """`file` keeps the evidence over a restart. `clock`: seconds that never jump back."""
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally.load(file)
        self._saved = float("-inf")
        self._unsaved = False
        self._failing = False
        self._own = Metrics("monitor")
        self._control = Metrics("control")
        self._counted: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._newest: Snapshot | None = None

    def push(self, replica: str, snapshot: Snapshot) -> None:
        """A replica's numbers as they stand now."""
        with self._lock:
            held = self._snapshots.get(replica)
            if held is not None and held.taken > snapshot.taken:
                return  # pushes overtake each other; a counter must not go back
            self._snapshots[replica] = snapshot
            self._heard[replica] = self._clock()
            grew = self._tally.take(replica, snapshot.counts, snapshot.targets)
            self._unsaved = self._unsaved or grew
            self._drop_silent()
            # Of replicas that are one release apart for a moment, the one ahead is right.
            self._newest = max(self._snapshots.values(), key=lambda s: (s.release, s is snapshot))
            self._save()

    def page(self, figures: dict[str, float]) -> bytes:
        """The metrics page in Prometheus' text format. `figures`: control's; its rows are left
        out where there are none."""
        with self._lock:
            self._drop_silent()
            families = [*self._evidence(), *self._of_control(figures)]
            live = sorted(self._snapshots.items())
            families += merge((name, snapshot.families) for name, snapshot in live)
        return generate_latest(_Page(families))

    def _evidence(self) -> list[Family]:
        """The active release's stack, by all that was ever counted for it."""
        newest = self._newest
        if newest is None:
            return []
        for name, value in asdict(self._tally.findings(newest.stack, newest.targets)).items():
            self._own.set(f"lethe_{name}", value)
        self._own.set("lethe_leak_target_ratio", newest.targets.leak)
        self._own.set("lethe_drift_target_ratio", newest.targets.drift)
        self._own.set("lethe_replicas", len(self._snapshots))
        self._own.set("lethe_replicas_expected", newest.expected)
        return self._own.families()

    def _of_control(self, figures: dict[str, float]) -> list[Family]:
        if not figures:
            return []
        rows = self._control
        rows.set("lethe_pending_requests", figures["pending"])
        rows.set("lethe_oldest_pending_timestamp_seconds", figures["oldest_pending"])
        rows.set("lethe_registry_head_seq", figures["seq"])
        rows.set("lethe_active_release", figures["active"])
        for outcome in OUTCOMES:
            # The ledger has the totals; a counter takes what is new.
            grown = figures[outcome] - self._counted.get(outcome, 0.0)
            rows.count("lethe_forgets_total", outcome, by=max(grown, 0.0))
            self._counted[outcome] = max(figures[outcome], self._counted.get(outcome, 0.0))
        return rows.families()

    def _drop_silent(self) -> None:
        """What a replica counted stays in the tally when its snapshot goes."""
        now = self._clock()
        for name in [name for name, at in self._heard.items() if now - at >= STALE_S]:
            del self._heard[name], self._snapshots[name]

    def _save(self) -> None:
        if not self._unsaved or self._clock() - self._saved < SAVE_S:
            return
        self._saved = self._clock()
        try:
            self._tally.save(self._file)
            self._unsaved = self._failing = False
        except OSError as error:
            if not self._failing:  # said once, not every second
                log.warning("the evidence can't be saved, a restart would lose it: %s", error)
            self._failing = True


class _Page(Collector):
    """Families that were collected already, for `generate_latest`."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families
