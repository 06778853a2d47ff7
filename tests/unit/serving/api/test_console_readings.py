"""The console's numbers, read from a real metrics page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from serving.api.console.readings import drift_view, leak_view, replicas_view, watching_view
from serving.monitoring.messages import ProbeSnapshot, Snapshot
from serving.monitoring.metrics import Metrics
from serving.monitoring.metrics_page import Look, look
from serving.monitoring.monitor import Monitor
from serving.monitoring.posture import Posture
from serving.monitoring.tally import Counts, Targets

COUNTS = Counts(matches=200, leaks=1, retained=900, disagreements=9)


@pytest.fixture
def now(tmp_path: Path) -> Look:
    """A metrics page of two replicas. One of them has answered requests."""
    busy, idle = Metrics("replica"), Metrics("replica")
    for replica in (busy, idle):
        replica.set("lethe_lease_remaining_seconds", 6.5)
        replica.set("lethe_release", 3)
    busy.count("lethe_requests_total", "/v1/predict", "ok", by=40)
    busy.count("lethe_requests_total", "/v1/predict", "error", by=2)
    busy.count("lethe_requests_total", "/v1/predict", "late", by=3)
    busy.count("lethe_requests_total", "/v1/live", "ok", by=1000)
    for seconds in (0.004, 0.04, 9.0):
        busy.observe("lethe_request_duration_seconds", seconds, "/v1/predict")
    busy.observe("lethe_request_duration_seconds", 0.001, "/v1/live")
    busy.count("lethe_images_total", by=42)
    monitor = Monitor(tmp_path / "evidence.json")
    for name, metrics in (("a", busy), ("b", idle)):
        counts = {"s": COUNTS} if name == "a" else {}
        monitor.push(name, _snapshot(metrics, counts))
    return look(monitor.page(None).decode(), at=0.0)


def _snapshot(metrics: Metrics, counts: dict[str, Counts]) -> Snapshot:
    targets = Targets(leak=0.02, drift=0.05)
    return Snapshot(metrics.families(), 0.0, 3, "s", targets, counts, expected=2)


def test_predictions_are_counted_apart_from_the_consoles_own_requests(now: Look) -> None:
    found = replicas_view(now)
    answered = {"ok": 40, "client_error": 0, "not_current": 0, "late": 3, "error": 2}
    assert found["a"]["predictions"] == answered
    assert found["a"]["images"] == 42
    assert found["a"]["latency"][-1] == (None, 3)
    assert dict(found["a"]["latency"])[0.05] == 2
    assert (found["a"]["release"], found["a"]["lease_s"]) == (3, 6.5)


def test_a_replica_that_answered_nothing_has_zeros(now: Look) -> None:
    idle = replicas_view(now)["b"]
    assert sum(idle["predictions"].values()) == 0
    assert idle["latency"] == []


def test_evidence_comes_with_the_counts_that_it_was_made_of(now: Look) -> None:
    leak, drift = leak_view(now, COUNTS), drift_view(now, COUNTS)
    assert leak is not None
    assert drift is not None
    assert (leak["matches"], leak["leaks"], leak["target"]) == (200, 1, 0.02)
    assert 0.005 < leak["upper_bound"] < 0.1
    assert leak["evidence_log10"] < leak["proof_log10"]
    assert (drift["compared"], drift["disagreements"], drift["target"]) == (900, 9, 0.05)


def test_what_watches_and_what_probes_found_is_told_apart_from_traffic(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    posture = Posture("canary", share=0.0, until=1e9, canaries=2)
    monitor.push("a", replace(_snapshot(Metrics("replica"), {}), posture=posture, forgotten=1))
    watch = Metrics("watch")
    watch.set("lethe_canary_classes", 2)
    watch.set("lethe_canary_classes_forgotten", 1)
    watch.count("lethe_probes_total", "leak", by=4)
    monitor.push_probes("p", ProbeSnapshot(watch.families(), 0.0, {"s": Counts(4, 4)}))
    now = look(monitor.page(None).decode(), at=0.0)
    watching = watching_view(now)
    assert watching is not None
    assert (watching["posture"], watching["shadow_until"], watching["blind"]) == (
        "canary",
        1e9,
        None,
    )
    assert (watching["canary_classes"], watching["canary_classes_forgotten"]) == (2, 1)
    assert watching["last_probe"] is None
    assert watching["probes"]["leak"] == 4
    probed = leak_view(now, Counts(4, 4), source="canary")
    traffic = leak_view(now, Counts())
    assert probed is not None
    assert traffic is not None
    assert probed["evidence_log10"] >= 3 > traffic["evidence_log10"]
    assert watching_view(look("", at=0.0)) is None


def test_without_evidence_there_is_nothing_and_not_zero() -> None:
    assert leak_view(look("", at=0.0), Counts()) is None
    assert drift_view(look("", at=0.0), Counts()) is None
    assert replicas_view(look("", at=0.0)) == {}


def test_everything_is_json_that_browsers_read(now: Look) -> None:
    text = json.dumps([replicas_view(now), leak_view(now, COUNTS)], allow_nan=False)
    assert "Infinity" not in text
