"""What `lethe top` shows for a real metrics page and a status."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from serving.cli.top import screen
from serving.monitoring.messages import ProbeSnapshot, Snapshot
from serving.monitoring.metrics import FAILED, OUTCOMES, Metrics, outcome_of
from serving.monitoring.metrics_page import Look, look
from serving.monitoring.monitor import Monitor
from serving.monitoring.posture import Posture
from serving.monitoring.tally import Counts, Targets

STATUS: dict[str, Any] = {
    "release": 3,
    "acknowledged": True,
    "classes": 10,
    "forgotten_by_weights": ["7"],
    "masked_only": [],
    "replicas": {"a": {"release": 3, "behind": False}, "b": {"release": 2, "behind": True}},
    "jobs": [],
}


def page(tmp_path: Path, requests: int, counts: Counts, *, outcome: str = "ok") -> str:
    replica = Metrics("replica")
    replica.set("lethe_lease_remaining_seconds", 6.5)
    replica.count("lethe_requests_total", "/v1/predict", outcome, by=requests)
    replica.observe("lethe_request_duration_seconds", 0.01, "/v1/predict")
    monitor = Monitor(tmp_path.with_suffix(".json"))
    targets = Targets(leak=0.02, drift=0.05)
    monitor.push("a", Snapshot(replica.families(), 0.0, 3, "s", targets, {"s": counts}, expected=2))
    return monitor.page(None).decode()


def drawn(now: Look, before: Look | None = None, **status: Any) -> str:
    console = Console(width=110, file=io.StringIO())
    with console.capture() as capture:
        console.print(screen(now, before, {**STATUS, **status}))
    return capture.get()


def test_rates_are_those_between_two_looks(tmp_path: Path) -> None:
    before = look(page(tmp_path, 100, Counts()), at=10.0)
    now = look(page(tmp_path, 150, Counts()), at=12.0)
    assert "predictions: 25.0/s" in drawn(now, before)
    assert "requests: 100 so far" in drawn(before)


@pytest.mark.parametrize(("outcome", "failed"), [(o, o in FAILED) for o in OUTCOMES])
def test_only_what_the_server_failed_at_counts_as_failed(
    tmp_path: Path, outcome: str, failed: bool
) -> None:
    before = look(page(tmp_path, 100, Counts(), outcome=outcome), at=10.0)
    now = look(page(tmp_path, 150, Counts(), outcome=outcome), at=12.0)
    assert f"{25.0 if failed else 0.0}/s failed" in drawn(now, before)
    assert all(outcome_of(status) == "ok" for status in (200, 202, 304))
    assert {outcome_of(s) for s in (200, 404, 429, 503, 504, 500)} == set(OUTCOMES)


def test_a_proven_leak_is_an_alert_and_quiet_traffic_is_not(tmp_path: Path) -> None:
    leaking = drawn(look(page(tmp_path / "x", 1, Counts(matches=4, leaks=4)), at=0.0))
    assert "alert" in leaking.partition("leak, evidence")[2].partition("\n")[0]
    quiet = drawn(look(page(tmp_path / "y", 1, Counts(matches=200)), at=0.0))
    line = quiet.partition("leak, evidence")[2].partition("\n")[0]
    assert "quiet" in line
    assert "leak rate at most 2.0%" in line


def test_a_page_without_evidence_is_called_blind() -> None:
    assert drawn(look("", at=0.0)).count("blind") == 4


def test_the_posture_its_end_and_why_it_is_blind_are_said(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    watching = {
        "watching: shadow": Posture(until=4e9),
        "shadowing ends 2096-10-02": Posture(until=4e9),
        "shadowing ended 2001-09-09": Posture(share=0.0, until=1e9, ended=True),
        "blind: shadowing has ended, and no canary class is probed": Posture(
            share=0.0, until=1e9, ended=True
        ),
        "blind: no forgotten canary class is probed": Posture("canary", share=0.0, canaries=2),
        "blind: the monitor is off": Posture("off", share=0.0),
    }
    for words, posture in watching.items():
        families = Metrics("replica").families()
        targets = Targets(leak=0.02, drift=0.05)
        snapshot = Snapshot(families, 0.0, 3, "s", targets, {}, 2, posture, forgotten=1)
        monitor.push("a", snapshot)
        assert words in drawn(look(monitor.page(None).decode(), at=0.0)), words


def test_probes_have_evidence_of_their_own(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    targets = Targets(leak=0.02, drift=0.05)
    monitor.push("a", Snapshot([], 0.0, 3, "s", targets, {}, expected=1))
    watch = Metrics("watch")
    watch.set("lethe_canary_classes", 2)
    watch.set("lethe_canary_classes_forgotten", 1)
    leaks = {"s": Counts(matches=4, leaks=4)}
    monitor.push_probes("p", ProbeSnapshot(watch.families(), 0.0, leaks))
    text = drawn(look(monitor.page(None).decode(), at=0.0))
    assert "1 of 2 canary classes forgotten" in text
    assert "alert" in text.partition("canary leak, evidence")[2].partition("\n")[0]
    assert "quiet" in text.partition("leak, evidence")[2].partition("\n")[0]


def test_traffic_that_is_not_shadowed_is_not_called_quiet(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    targets = Targets(leak=0.02, drift=0.05)
    unshadowed = Posture("canary", share=0.0)
    monitor.push("a", Snapshot([], 0.0, 3, "s", targets, {}, 1, unshadowed))
    text = drawn(look(monitor.page(None).decode(), at=0.0))
    assert text.count("not compared") == 3
    assert "quiet" not in text


def test_replicas_that_are_behind_or_silent_are_marked(tmp_path: Path) -> None:
    text = drawn(look(page(tmp_path, 1, Counts()), at=0.0))
    (b,) = [line for line in text.splitlines() if line.startswith("b ")]
    assert "behind" in b
    assert "silent" in b
    assert "6.5 s" in text


@pytest.mark.parametrize("progress", [None, {"phase": "training", "step": 5, "steps": 90}])
def test_a_running_job_shows_its_progress(progress: dict[str, Any] | None) -> None:
    job = {"job": "job-1", "state": "requested", "ahead": 0, "progress": progress}
    text = drawn(look("", at=0.0), jobs=[job, {**job, "job": "job-0", "state": "done"}])
    assert "job-1" in text
    assert "job-0" not in text
    assert ("5/90" in text) == (progress is not None)
