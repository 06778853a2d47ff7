"""The metric table, and the page made from many replicas' numbers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.messages import ControlFigures, ProbeSnapshot, Snapshot
from serving.monitoring.metrics import TABLE, Metrics, Source
from serving.monitoring.monitor import Monitor
from serving.monitoring.tally import Counts, Targets

FIGURES = ControlFigures(
    pending=1,
    oldest_pending=5.0,
    seq=9,
    active=2,
    accepted=3,
    done=1,
    refused=1,
    read_at=7.0,
    suspended=False,
    under_erasure=2,
    forgotten=1,
    families=[],
)
LEAKS = Counts(matches=2, leaks=2)


def snapshot_of(metrics: Metrics, **counts: Counts) -> Snapshot:
    """A snapshot of the replica's metrics, pickled and unpickled as Ray does between processes."""
    targets = Targets(leak=0.02, drift=0.05)
    snapshot = Snapshot(metrics.families(), 0.0, 2, "s", targets, counts, expected=2)
    carried: Snapshot = pickle.loads(pickle.dumps(snapshot))
    return carried


def everything(source: Source) -> Metrics:
    """The metrics of a process after every counter was counted once."""
    metrics = Metrics(source)
    for row in TABLE:
        if row.source == source and row.kind == "counter":
            metrics.count(row.name, *["x"] * len(row.labels))
    return metrics


def page_of(
    file: Path, *replicas: Metrics, probes: Metrics | None = None, trainer: Metrics | None = None
) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    monitor = Monitor(file / "evidence.json")
    for number, replica in enumerate(replicas):
        monitor.push(f"r{number}", snapshot_of(replica, s=LEAKS))
    if probes is not None:
        monitor.push_probes("p", ProbeSnapshot(probes.families(), taken=0.0, counts={}))
    monitor.page(FIGURES)
    figures = replace(FIGURES, families=trainer.families() if trainer else [])
    text = monitor.page(replace(figures, accepted=4)).decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_every_row_of_the_table_is_on_the_page(tmp_path: Path) -> None:
    replica = Metrics("replica")
    for row in TABLE:
        labels = ["x"] * len(row.labels)
        if row.source == "replica" and row.kind == "counter":
            replica.count(row.name, *labels)
        if row.source == "replica" and row.kind == "histogram":
            replica.observe(row.name, 1.0, *labels)
    found = page_of(tmp_path, replica, probes=everything("watch"), trainer=everything("trainer"))
    for row in TABLE:
        assert (f"{row.name}_bucket" if row.kind == "histogram" else row.name) in found, row.name


def test_no_label_can_name_a_class_or_a_request() -> None:
    allowed = {"route", "outcome", "stage", "phase", "source", "posture", "reason", "reaction"}
    assert {label for row in TABLE for label in row.labels} <= allowed


def test_names_follow_prometheus_conventions() -> None:
    for row in TABLE:
        assert row.name.startswith("lethe_")
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name


def test_replicas_are_told_apart_and_their_leaks_are_one_stream_of_evidence(
    tmp_path: Path,
) -> None:
    one, other = Metrics("replica"), Metrics("replica")
    for replica in (one, other):
        replica.count("lethe_shadow_matches_total", by=2)
        replica.count("lethe_shadow_leaks_total", by=2)
    found = page_of(tmp_path, one, other)
    assert found["lethe_shadow_leaks_total"] == {
        (("replica", "r0"),): 2.0,
        (("replica", "r1"),): 2.0,
    }
    assert found["lethe_leak_evidence_log10"][("source", "shadow"),] >= 3
    assert found["lethe_replicas"][()] == 2


def test_forget_commands_are_counted_from_the_ledgers_totals(tmp_path: Path) -> None:
    found = page_of(tmp_path)
    assert found["lethe_forgets_total"][(("outcome", "accepted"),)] == 4
    assert found["lethe_forgets_total"][(("outcome", "done"),)] == 1
