"""The table of all metrics (names, types, labels, buckets, help), and a process's own metrics.

Every metric is declared here. No label holds a class, a subject, a request or a client. A test
checks the rules, dashboards and docs against this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["replica", "monitor", "control", "trainer", "watch"]


@dataclass(frozen=True)
class Metric:
    """One row of the table. `source`: the process that measures it."""

    name: str
    kind: Kind
    help: str
    source: Source
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


OUTCOMES = ("ok", "client_error", "not_current", "late", "error")
"""How a request ended; see `outcome_of`."""
FAILED = ("not_current", "late", "error")
"""The outcomes that the server is to blame for."""
_REQUEST_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_SWAP_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_TRAIN_S = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
_BATCH = (1, 2, 4, 8, 16, 32, 64)

TABLE: tuple[Metric, ...] = (
    Metric(
        "lethe_requests_total",
        "counter",
        f"Requests answered, by outcome ({', '.join(OUTCOMES)}).",
        "replica",
        ("route", "outcome"),
    ),
    Metric(
        "lethe_request_duration_seconds",
        "histogram",
        "Time from receipt to response.",
        "replica",
        ("route",),
        _REQUEST_S,
    ),
    Metric(
        "lethe_stage_duration_seconds",
        "histogram",
        "Time in each stage of a prediction (decode, queue, forward).",
        "replica",
        ("stage",),
        _STAGE_S,
    ),
    Metric("lethe_batch_size", "histogram", "Images per forward pass.", "replica", (), _BATCH),
    Metric("lethe_requests_in_flight", "gauge", "Requests accepted, not answered.", "replica"),
    Metric("lethe_images_total", "counter", "Images classified or embedded.", "replica"),
    Metric(
        "lethe_images_skipped_total",
        "counter",
        "Images that were not computed: the client was gone, or the deadline had passed.",
        "replica",
    ),
    Metric("lethe_release", "gauge", "Release that the replica serves.", "replica"),
    Metric("lethe_registry_seq", "gauge", "Last ledger record accepted.", "replica"),
    Metric("lethe_guard_size", "gauge", "Classes that are masked.", "replica"),
    Metric("lethe_active_groups", "gauge", "LoRA groups in effect (0: unadapted).", "replica"),
    Metric(
        "lethe_lease_remaining_seconds",
        "gauge",
        "Time for which the replica may still serve; negative when it may not.",
        "replica",
    ),
    Metric(
        "lethe_swaps_total",
        "counter",
        "Releases taken up, by outcome (ok, rejected, failed).",
        "replica",
        ("outcome",),
    ),
    Metric(
        "lethe_swap_duration_seconds",
        "histogram",
        "Time per phase of a swap (build, flip; flip includes the drain).",
        "replica",
        ("phase",),
        _SWAP_S,
    ),
    Metric(
        "lethe_release_failures_total",
        "counter",
        "Releases that could not be made ready, by the stage that failed (fetched, verified, "
        "built, checked).",
        "replica",
        ("stage",),
    ),
    Metric("lethe_last_swap_timestamp_seconds", "gauge", "Unix time of the last swap.", "replica"),
    Metric(
        "lethe_emissions_total",
        "counter",
        "Predictions, before the mask, of a class that the weights were taught to forget.",
        "replica",
    ),
    Metric(
        "lethe_shadow_samples_total",
        "counter",
        "Requests also scored by the unadapted backbone.",
        "replica",
    ),
    Metric(
        "lethe_shadow_drops_total",
        "counter",
        "Sampled requests that were not scored: the queue was full, or scoring failed.",
        "replica",
    ),
    Metric(
        "lethe_shadow_matches_total",
        "counter",
        "Samples that the unadapted backbone assigns to a class the weights have forgotten.",
        "replica",
    ),
    Metric(
        "lethe_shadow_leaks_total",
        "counter",
        "Matches that the adapted weights, before the mask, still name.",
        "replica",
    ),
    Metric(
        "lethe_shadow_retained_total",
        "counter",
        "Samples that the unadapted backbone assigns to a class that is not forgotten.",
        "replica",
    ),
    Metric(
        "lethe_shadow_disagreements_total",
        "counter",
        "Retained samples on which adapted and unadapted weights disagree.",
        "replica",
    ),
    Metric(
        "lethe_leak_evidence_log10",
        "gauge",
        "log10 of the e-value against 'leak rate is at most the target', by source (shadow, "
        "canary); 3 is proof at 0.001.",
        "monitor",
        ("source",),
    ),
    Metric("lethe_leak_target_ratio", "gauge", "Highest leak rate that is accepted.", "monitor"),
    Metric(
        "lethe_leak_upper_bound_ratio",
        "gauge",
        "95 % upper bound of the leak rate, valid however often it is read.",
        "monitor",
        ("source",),
    ),
    Metric(
        "lethe_leak_detector_log10",
        "gauge",
        "log10 of the detector of a leak that began after a quiet time; 0 when there is no sign.",
        "monitor",
        ("source",),
    ),
    Metric(
        "lethe_drift_evidence_log10",
        "gauge",
        "log10 of the e-value against 'disagreement on retained classes is at most the target'.",
        "monitor",
    ),
    Metric(
        "lethe_drift_target_ratio",
        "gauge",
        "Highest disagreement on retained classes that is accepted.",
        "monitor",
    ),
    Metric(
        "lethe_monitor_posture",
        "gauge",
        "1 for the posture in force (shadow, canary, off), 0 for the others.",
        "monitor",
        ("posture",),
    ),
    Metric(
        "lethe_shadow_until_timestamp_seconds",
        "gauge",
        "Unix time at which shadowing ends or has ended (0: never).",
        "monitor",
    ),
    Metric(
        "lethe_monitor_blind",
        "gauge",
        "1 while a leak could not be seen, by reason (off, ended, no_probes, no_matches, "
        "no_numbers).",
        "monitor",
        ("reason",),
    ),
    Metric(
        "lethe_last_match_timestamp_seconds",
        "gauge",
        "Unix time of the last match, by source; 0: none since the monitor's start.",
        "monitor",
        ("source",),
    ),
    Metric("lethe_replicas", "gauge", "Replicas that have reported lately.", "monitor"),
    Metric("lethe_replicas_expected", "gauge", "Replicas that the settings ask for.", "monitor"),
    Metric("lethe_pending_requests", "gauge", "Forget commands that are not finished.", "control"),
    Metric("lethe_active_release", "gauge", "Release that the ledger says is active.", "control"),
    Metric(
        "lethe_oldest_pending_timestamp_seconds",
        "gauge",
        "Unix time at which the oldest unfinished forget command was accepted (0: none).",
        "control",
    ),
    Metric(
        "lethe_forgets_total",
        "counter",
        "Forget commands, by outcome (accepted, done, refused).",
        "control",
        ("outcome",),
    ),
    Metric(
        "lethe_registry_head_seq",
        "gauge",
        "Last record of the ledger, as control sees it.",
        "control",
    ),
    Metric(
        "lethe_registry_read_timestamp_seconds",
        "gauge",
        "Unix time at which control last read the ledger to its end.",
        "control",
    ),
    Metric(
        "lethe_suspended", "gauge", "1 while serving is suspended on purpose, else 0.", "control"
    ),
    Metric("lethe_under_erasure", "gauge", "Classes under erasure.", "control"),
    Metric(
        "lethe_forgotten",
        "gauge",
        "Classes that the weights of the active release were taught to forget.",
        "control",
    ),
    Metric(
        "lethe_trainings_total",
        "counter",
        "Trainings that ended, by outcome (accepted, refused by a gate, failed).",
        "trainer",
        ("outcome",),
    ),
    Metric(
        "lethe_train_duration_seconds",
        "histogram",
        "Time from the start of a training to its verdict.",
        "trainer",
        (),
        _TRAIN_S,
    ),
    Metric("lethe_training", "gauge", "1 while an adapter is trained, else 0.", "trainer"),
    Metric(
        "lethe_probes_total",
        "counter",
        "Probes of canary classes, by outcome (quiet, leak, exposed, waiting, failed).",
        "watch",
        ("outcome",),
    ),
    Metric(
        "lethe_last_probe_timestamp_seconds",
        "gauge",
        "Unix time at which a probe was last answered (0: never).",
        "watch",
    ),
    Metric("lethe_canary_classes", "gauge", "Canary classes that the settings name.", "watch"),
    Metric(
        "lethe_canary_classes_forgotten",
        "gauge",
        "Canary classes that the weights of the release last probed have forgotten.",
        "watch",
    ),
    Metric(
        "lethe_reactions_total",
        "counter",
        "Automatic reactions, by reaction (leak, drift) and outcome (done, refused).",
        "watch",
        ("reaction", "outcome"),
    ),
)

ROWS = {metric.name: metric for metric in TABLE}


def outcome_of(status: int) -> str:
    """The outcome, one of `OUTCOMES`, for an HTTP status."""
    if status < 400:
        return "ok"
    if status == 503:
        return "not_current"
    if status == 504:
        return "late"
    # 501: the server works, but it doesn't offer what was asked for.
    return "client_error" if status < 500 or status == 501 else "error"


class Mirror(Protocol):
    """A second place for the same numbers, such as Ray's exporter."""

    def count(self, name: str, by: float, labels: tuple[str, ...]) -> None: ...
    def set(self, name: str, value: float, labels: tuple[str, ...]) -> None: ...
    def add(self, name: str, by: float) -> None: ...
    def observe(self, name: str, value: float, labels: tuple[str, ...]) -> None: ...


class Metrics:
    """The metrics of one process, from the table. Methods raise KeyError for an unknown name."""

    def __init__(self, source: Source, mirror: Mirror | None = None) -> None:
        self._mirror = mirror
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for row in TABLE:
            if row.source != source:
                continue
            if row.kind == "counter":
                self._counters[row.name] = Counter(
                    row.name, row.help, row.labels, registry=self.registry
                )
            elif row.kind == "gauge":
                self._gauges[row.name] = Gauge(
                    row.name, row.help, row.labels, registry=self.registry
                )
            else:
                self._histograms[row.name] = Histogram(
                    row.name, row.help, row.labels, registry=self.registry, buckets=row.buckets
                )

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(by)
        if self._mirror is not None:
            self._mirror.count(name, by, labels)

    def set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(value)
        if self._mirror is not None:
            self._mirror.set(name, value, labels)

    def add(self, name: str, by: float) -> None:
        self._gauges[name].inc(by)
        if self._mirror is not None:
            self._mirror.add(name, by)

    def observe(self, name: str, value: float, *labels: str) -> None:
        histogram = self._histograms[name]
        (histogram.labels(*labels) if labels else histogram).observe(value)
        if self._mirror is not None:
            self._mirror.observe(name, value, labels)

    def families(self) -> list[Family]:
        """The current numbers, without the `_created` samples."""
        families = list(self.registry.collect())
        for family in families:
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        return families


def merge(snapshots: Iterable[tuple[str, Sequence[Family]]]) -> list[Family]:
    """Merge the replicas' families by name; the label `replica` tells their samples apart."""
    merged: dict[str, Family] = {}
    for replica, families in snapshots:
        for family in families:
            into = merged.setdefault(
                family.name, Family(family.name, family.documentation, family.type, family.unit)
            )
            for sample in family.samples:
                into.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    return list(merged.values())
