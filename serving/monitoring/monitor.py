"""The monitor actor: collects the numbers of all processes for one metrics page, and keeps the
evidence on leaks and drift."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from serving.coordination.membership import boot_clock
from serving.monitoring.messages import ControlFigures, ProbeSnapshot, Proof, Snapshot
from serving.monitoring.metrics import Metrics, merge
from serving.monitoring.posture import BLIND_REASONS, POSTURES, BlindReason, why_blind
from serving.monitoring.ray_export import RayMirror
from serving.monitoring.tally import SOURCES, Counts, Source, Tally, Targets, entry
from serving.monitoring.trial_verdict import Seen

log = logging.getLogger(__name__)

ACTOR = "lethe-monitor"
OUTCOMES = ("accepted", "done", "refused")
STALE_S = 15.0
"""A replica that pushed nothing for this many seconds is not shown any more."""
PROBED_S = 900.0
"""Probing counts as stopped after this many seconds without a probe of a forgotten class."""
SAVE_S = 1.0
"""Shortest time between two writes of the evidence, in seconds."""


class Monitor:
    """Runs as a threaded Ray actor. Thread-safe."""

    def __init__(
        self, file: Path, *, ray_metrics: bool = False, clock: Callable[[], float] = boot_clock
    ) -> None:
        """
        Args:
            file: Keeps the evidence over a restart.
            ray_metrics: Export the metrics through Ray's own exporter too.
            clock: Returns seconds and never jumps back.
        """
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally.load(file)
        self._saved = float("-inf")
        self._unsaved = False
        self._failing = False
        self._own = Metrics("monitor", RayMirror("monitor") if ray_metrics else None)
        self._control = Metrics("control", RayMirror("control") if ray_metrics else None)
        self._counted: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._newest: Snapshot | None = None
        self._probes: tuple[str, ProbeSnapshot] | None = None
        self._probed = float("-inf")
        self._matched: dict[Source, float] = dict.fromkeys(SOURCES, 0.0)
        self._hopeful = clock()
        """When the last match came, or, if later, when matches became possible."""

    def push(self, replica: str, snapshot: Snapshot) -> None:
        """Take a replica's current numbers."""
        with self._lock:
            held = self._snapshots.get(replica)
            if held is not None and held.taken > snapshot.taken:
                return  # it was overtaken by a newer one; counters must not go back
            self._snapshots[replica] = snapshot
            self._heard[replica] = self._clock()
            self._take(replica, "shadow", snapshot.counts, snapshot.targets)
            self._drop_silent()
            # During a swap replicas differ by a release; the newer release counts.
            newest = max(self._snapshots.values(), key=lambda s: (s.release, s is snapshot))
            if not newest.forgotten or self._newest is None or self._newest.stack != newest.stack:
                self._hopeful = self._clock()
            self._newest = newest
            self._save()

    def trial(self, release: int) -> Seen | None:
        """What was counted of the release on trial; None before a replica reports its trial."""
        with self._lock:
            trials = [s.trial for s in self._snapshots.values() if s.trial is not None]
            trial = next((trial for trial in trials if trial.release == release), None)
            if trial is None:
                return None
            shadowed = entry(trial.stack, "shadow")
            return Seen(self._tally.total(shadowed), self._tally.findings(shadowed, trial.targets))

    def push_probes(self, sender: str, snapshot: ProbeSnapshot) -> bool:
        """Take what the probes found so far; return whether the posture wants probes.

        Their evidence is measured against the active release's target.
        """
        with self._lock:
            held, newest = self._probes, self._newest
            overtaken = held and held[0] == sender and held[1].taken > snapshot.taken
            if newest is not None and not overtaken:
                self._probes = sender, snapshot
                self._take(sender, "canary", snapshot.counts, newest.targets)
                self._save()
            return newest is not None and newest.posture.asked != "off"

    def proof(self) -> Proof | None:
        """The evidence on the active release's stack; None before any replica has pushed."""
        with self._lock:
            newest = self._newest
            return None if newest is None else self._proof(newest.release, newest.stack, newest)

    def proof_of(self, release: int, stack: str) -> Proof | None:
        """Like `proof`, for another release's stack, against the active release's targets."""
        with self._lock:
            newest = self._newest
            return None if newest is None else self._proof(release, stack, newest)

    def _proof(self, release: int, stack: str, newest: Snapshot) -> Proof:
        entries = {source: entry(stack, source) for source in SOURCES}
        return Proof(
            release=release,
            stack=stack,
            targets=newest.targets,
            findings={s: self._tally.findings(e, newest.targets) for s, e in entries.items()},
            counts={s: self._tally.total(e) for s, e in entries.items()},
        )

    def _take(
        self, sender: str, source: Source, counts: dict[str, Counts], targets: Targets
    ) -> None:
        named = {entry(stack, source): found for stack, found in counts.items()}
        before = sum(self._tally.total(name).matches for name in named)
        grew = self._tally.take(sender, named, targets)
        self._unsaved = self._unsaved or grew
        if sum(self._tally.total(name).matches for name in named) > before:
            self._matched[source] = time.time()
            self._hopeful = self._clock()
            if source == "canary":
                self._probed = self._clock()

    def page(self, figures: ControlFigures | None) -> bytes:
        """The metrics page in Prometheus' text format.

        `figures` come from control; None leaves out the rows of control and the trainer.
        """
        with self._lock:
            self._drop_silent()
            families = [*self._evidence(), *self._of_control(figures)]
            if self._probes is not None:
                families += self._probes[1].families
            live = sorted(self._snapshots.items())
            families += merge((name, snapshot.families) for name, snapshot in live)
        return generate_latest(_Page(families))

    def _evidence(self) -> list[Family]:
        """The metrics about the active release's stack, from everything ever counted for it."""
        newest = self._newest
        if newest is None:
            return []
        own = self._own
        for source in SOURCES:
            found = self._tally.findings(entry(newest.stack, source), newest.targets)
            for name, value in asdict(found).items():
                if name == "drift_evidence_log10":
                    if source == "shadow":  # probes say nothing about retained classes
                        own.set(f"lethe_{name}", value)
                else:
                    own.set(f"lethe_{name}", value, source)
            own.set("lethe_last_match_timestamp_seconds", self._matched[source], source)
        own.set("lethe_leak_target_ratio", newest.targets.leak)
        own.set("lethe_drift_target_ratio", newest.targets.drift)
        own.set("lethe_replicas", len(self._snapshots))
        own.set("lethe_replicas_expected", newest.expected)
        for posture in POSTURES:
            own.set("lethe_monitor_posture", posture == newest.posture.in_force, posture)
        own.set("lethe_shadow_until_timestamp_seconds", newest.posture.until)
        why = self._why_blind(newest)
        for reason in BLIND_REASONS:
            own.set("lethe_monitor_blind", reason == why, reason)
        return own.families()

    def _why_blind(self, newest: Snapshot) -> BlindReason | None:
        now = self._clock()
        return why_blind(
            newest.posture if self._snapshots else None,
            forgotten=newest.forgotten,
            probed=now - self._probed < PROBED_S,
            quiet_for=now - self._hopeful,
        )

    def _of_control(self, figures: ControlFigures | None) -> list[Family]:
        if figures is None:
            return []
        rows = self._control
        rows.set("lethe_pending_requests", figures.pending)
        rows.set("lethe_oldest_pending_timestamp_seconds", figures.oldest_pending)
        rows.set("lethe_registry_head_seq", figures.seq)
        rows.set("lethe_active_release", figures.active)
        rows.set("lethe_registry_read_timestamp_seconds", figures.read_at)
        rows.set("lethe_suspended", figures.suspended)
        rows.set("lethe_under_erasure", figures.under_erasure)
        rows.set("lethe_forgotten", figures.forgotten)
        for outcome in OUTCOMES:
            # `figures` has totals and a counter takes increases.
            total = getattr(figures, outcome)
            grown = total - self._counted.get(outcome, 0.0)
            rows.count("lethe_forgets_total", outcome, by=max(grown, 0.0))
            self._counted[outcome] = max(total, self._counted.get(outcome, 0.0))
        return [*rows.families(), *figures.families]

    def _drop_silent(self) -> None:
        """Drop the snapshots of replicas that stopped pushing. Their counts stay in the tally."""
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
            if not self._failing:  # warn once, not every second
                log.warning("the evidence can't be saved; a restart would lose it: %s", error)
            self._failing = True


class _Page(Collector):
    """Hands families that were collected already to `generate_latest`."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families
