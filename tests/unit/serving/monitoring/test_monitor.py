"""The monitor's page for all replicas: what is on it, what isn't, and what a restart keeps."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.messages import ControlFigures, ProbeSnapshot, Snapshot
from serving.monitoring.metrics import ROWS, Metrics
from serving.monitoring.monitor import STALE_S, Monitor
from serving.monitoring.posture import Posture
from serving.monitoring.tally import Counts, Targets

FIGURES = ControlFigures(
    pending=1,
    oldest_pending=5.0,
    seq=9,
    active=4,
    accepted=3,
    done=1,
    refused=1,
    read_at=7.0,
    suspended=False,
    under_erasure=2,
    forgotten=1,
    families=[],
)


class Clock:
    """A clock that the test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def snapshot(
    release: int = 1, stack: str = "s", *, taken: float = 0.0, images: int = 0, **found: int
) -> Snapshot:
    metrics = Metrics("replica")
    metrics.set("lethe_release", release)
    metrics.count("lethe_images_total", by=images)
    targets = Targets(leak=0.02, drift=0.05)
    counts = {stack: Counts(**found)}
    return Snapshot(metrics.families(), taken, release, stack, targets, counts, expected=2)


def rows(monitor: Monitor, figures: ControlFigures | None = FIGURES) -> dict[str, list[float]]:
    page = monitor.page(figures).decode()
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


def test_controls_rows_are_left_out_while_it_is_away(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    monitor.push("a", snapshot())
    of_control = {name for name, row in ROWS.items() if row.source == "control"}
    assert of_control <= set(rows(monitor))
    assert rows(monitor)["lethe_suspended"] == [0]
    assert not of_control & set(rows(monitor, None))
    assert rows(monitor)["lethe_active_release"] == [4]


def test_pages_at_once_count_a_forget_command_once(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    together = threading.Barrier(8)

    def ask(number: int) -> None:
        together.wait()
        for done in range(40):
            monitor.page(replace(FIGURES, accepted=number + done))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(monitor)["lethe_forgets_total"][0] == 7 + 39


def test_a_silent_replica_leaves_the_page_and_its_counts_stay_evidence(tmp_path: Path) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path / "evidence.json", clock=clock)
    monitor.push("dead", snapshot(matches=4, leaks=4))
    clock.now += STALE_S + 1
    for number in range(50):
        monitor.push(f"r{number}", snapshot())
        clock.now += STALE_S + 1
    monitor.push("live", snapshot())
    found = rows(monitor)
    assert len(found["lethe_release"]) == 1
    assert found["lethe_replicas"] == [1]
    assert found["lethe_replicas_expected"] == [2]
    assert found["lethe_leak_evidence_log10"][0] >= 3


def test_evidence_is_of_the_newest_releases_stack(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    monitor.push("a", snapshot(1, "one", matches=4, leaks=4))
    monitor.push("a", snapshot(2, "one", taken=1.0, matches=4, leaks=4))
    assert rows(monitor)["lethe_leak_evidence_log10"][0] >= 3, "another guard, the same weights"
    monitor.push("b", snapshot(3, "two"))
    monitor.push("a", snapshot(2, "one", taken=2.0, matches=4, leaks=4))
    assert abs(rows(monitor)["lethe_leak_evidence_log10"][0]) < 1e-9
    assert rows(monitor)["lethe_leak_upper_bound_ratio"][0] > 0.99


def test_a_push_that_was_overtaken_does_not_turn_a_counter_back(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    monitor.push("a", snapshot(taken=2.0, images=20, matches=2))
    monitor.push("a", snapshot(taken=1.0, images=10, matches=1))
    assert rows(monitor)["lethe_images_total"] == [20]


def test_evidence_survives_the_monitors_restart(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    Monitor(path).push("a", snapshot(matches=4, leaks=4))
    again = Monitor(path)
    again.push("a", snapshot(matches=4, leaks=4))
    again.push("b", snapshot())
    evidence = rows(again)["lethe_leak_evidence_log10"][0]
    once = Monitor(tmp_path / "other.json")
    once.push("a", snapshot(matches=4, leaks=4))
    assert evidence == rows(once)["lethe_leak_evidence_log10"][0]


def test_a_folder_that_takes_no_file_stops_neither_page_nor_evidence(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "absent" / "evidence.json")
    monitor.push("a", snapshot(matches=4, leaks=4))
    assert rows(monitor)["lethe_leak_evidence_log10"][0] >= 3


def blind(monitor: Monitor) -> set[str]:
    """The reasons for which the page says that the monitor is blind."""
    page = monitor.page(None).decode()
    return {
        sample.labels["reason"]
        for family in text_string_to_metric_families(page)
        if family.name == "lethe_monitor_blind"
        for sample in family.samples
        if sample.value
    }


def watching(posture: Posture, *, forgotten: int = 1, **found: int) -> Snapshot:
    return replace(snapshot(**found), posture=posture, forgotten=forgotten)


def probes(taken: float, **found: int) -> ProbeSnapshot:
    return ProbeSnapshot([], taken, {"s": Counts(**found)})


def test_a_monitor_that_could_see_no_leak_says_so_and_why(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json", clock=Clock())
    cases: list[tuple[Posture, set[str]]] = [
        (Posture(), set()),
        (Posture("off", share=0.0), {"off"}),
        (Posture("shadow", share=0.0), {"off"}),
        (Posture("shadow", share=0.0, until=5.0, ended=True), {"ended"}),
        (Posture("shadow", share=0.0, until=5.0, ended=True, canaries=1), {"no_probes"}),
        (Posture("canary", share=0.0, canaries=1), {"no_probes"}),
    ]
    for posture, expected in cases:
        monitor.push("a", watching(posture))
        assert blind(monitor) == expected, posture
        monitor.push("a", watching(posture, forgotten=0))
        assert blind(monitor) == set(), "nothing was forgotten, so nothing can leak"
    monitor.push_probes("p", probes(0.0, matches=1))
    monitor.push("a", watching(Posture("canary", share=0.0, canaries=1)))
    assert blind(monitor) == set()


def test_a_monitor_that_sees_no_match_for_long_is_blind_until_the_next(tmp_path: Path) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path / "evidence.json", clock=clock)
    posture = Posture(blind_after=3600.0)
    monitor.push("a", watching(posture, matches=1))
    clock.now += 3500
    monitor.push("a", watching(posture, matches=1))
    assert blind(monitor) == set()
    clock.now += 200
    monitor.push("a", watching(posture, matches=1))
    assert blind(monitor) == {"no_matches"}
    monitor.push("a", watching(posture, matches=2))
    assert blind(monitor) == set()


def test_without_any_replica_the_monitor_is_blind(tmp_path: Path) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path / "evidence.json", clock=clock)
    monitor.push("a", watching(Posture()))
    clock.now += STALE_S
    assert blind(monitor) == {"no_numbers"}


def test_probes_and_traffic_are_two_streams_of_evidence(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    monitor = Monitor(path)
    monitor.push("a", snapshot(matches=100))
    assert monitor.push_probes("p", probes(1.0, matches=4, leaks=4))
    monitor.push_probes("p", probes(0.5, matches=2, leaks=2))  # overtaken
    for now in (monitor, Monitor(path)):
        now.push("a", snapshot(matches=100))
        now.push_probes("p", probes(2.0, matches=4, leaks=4))
        proof = now.proof()
        assert proof is not None
        assert proof.counts["shadow"] == Counts(matches=100)
        assert proof.counts["canary"] == Counts(matches=4, leaks=4)
        assert proof.findings["canary"].leak_evidence_log10 >= 3
        assert proof.findings["shadow"].leak_evidence_log10 < 0


def test_no_probes_are_asked_for_in_the_posture_off(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    assert not monitor.push_probes("p", probes(0.0))
    monitor.push("a", watching(Posture("off", share=0.0)))
    assert not monitor.push_probes("p", probes(1.0))
    monitor.push("a", watching(Posture("shadow", share=0.0, ended=True, canaries=1)))
    assert monitor.push_probes("p", probes(2.0))


def test_a_replica_without_evidence_changes_none(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "evidence.json")
    monitor.push("a", snapshot(matches=4, leaks=4))
    before = rows(monitor)["lethe_leak_evidence_log10"]
    monitor.push("b", replace(snapshot(), families=[], counts={}))
    assert rows(monitor)["lethe_leak_evidence_log10"] == before
