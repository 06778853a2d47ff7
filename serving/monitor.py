"""The monitor actor: gathers every replica's numbers, so that one scrape target shows them all."""

from __future__ import annotations

import time

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from serving.evidence import leak_evidence
from serving.metrics import Metrics, merge

ACTOR = "lethe-monitor"
OUTCOMES = ("accepted", "done", "refused")
STALE_S = 15.0
"""A replica not heard of for this long is no longer shown as serving."""


class Monitor:
    """Runs as a threaded Ray actor."""

    def __init__(self, *, leak_target: float) -> None:
        self._target = leak_target
        self._own = Metrics("monitor")
        self._heard: dict[str, float] = {}
        self._snapshots: dict[str, list[Family]] = {}
        self._counted: dict[str, float] = {}

    def push(self, replica: str, families: list[Family]) -> None:
        """A replica's metrics as they stand now."""
        self._snapshots[replica] = families
        self._heard[replica] = time.monotonic()

    def leaks(self) -> tuple[int, int]:
        """(matches, leaks) over all replicas, those that are gone included."""
        totals = {"lethe_shadow_matches_total": 0.0, "lethe_shadow_leaks_total": 0.0}
        for families in list(self._snapshots.values()):
            for family in families:
                for sample in family.samples:
                    if sample.name in totals:
                        totals[sample.name] += sample.value
        matches, leaks = totals.values()
        return int(matches), int(leaks)

    def page(self, figures: dict[str, float]) -> bytes:
        """The metrics page in Prometheus' text format. `figures`: control's."""
        live = self._live()
        own = self._own
        matches, leaks = self.leaks()
        own.set("lethe_leak_evidence_log10", leak_evidence(matches, leaks, target=self._target))
        own.set("lethe_leak_target_ratio", self._target)
        own.set("lethe_replicas", len(live))
        if figures:
            own.set("lethe_pending_requests", figures["pending"])
            own.set("lethe_oldest_pending_timestamp_seconds", figures["oldest_pending"])
            own.set("lethe_registry_head_seq", figures["seq"])
            for outcome in OUTCOMES:
                # The ledger has the totals; a counter takes what is new.
                grown = figures[outcome] - self._counted.get(outcome, 0.0)
                own.count("lethe_forgets_total", outcome, by=max(grown, 0.0))
                self._counted[outcome] = figures[outcome]
        families = own.families() + merge((name, self._snapshots[name]) for name in live)
        return generate_latest(_Page(families))

    def _live(self) -> list[str]:
        now = time.monotonic()
        return sorted(name for name, at in self._heard.items() if now - at < STALE_S)


class _Page(Collector):
    """Families that were collected already, for `generate_latest`."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families
