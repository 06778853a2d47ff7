"""Counts of many replicas are summed once each, whichever process dies and restarts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from serving.monitoring.tally import REPLICAS, STACKS, Counts, Tally, Targets

TARGETS = Targets(leak=0.02, drift=0.05)


def leaks(number: int) -> Counts:
    return Counts(matches=number, leaks=number)


def test_totals_since_a_replicas_start_are_added_once() -> None:
    tally = Tally()
    assert tally.take("a", {"s": leaks(2)}, TARGETS)
    assert not tally.take("a", {"s": leaks(2)}, TARGETS)
    tally.take("b", {"s": leaks(3)}, TARGETS)
    tally.take("a", {"s": leaks(4)}, TARGETS)
    assert tally.total("s") == leaks(7)


def test_a_snapshot_that_arrives_late_takes_nothing_away() -> None:
    tally = Tally()
    tally.take("a", {"s": leaks(5)}, TARGETS)
    assert not tally.take("a", {"s": leaks(3)}, TARGETS)
    tally.take("a", {"s": leaks(6)}, TARGETS)
    assert tally.total("s") == leaks(6)


def test_another_stack_begins_anew_and_the_first_keeps_its_evidence() -> None:
    tally = Tally()
    tally.take("a", {"old": leaks(9)}, TARGETS)
    tally.take("a", {"old": leaks(9), "new": Counts(matches=4)}, TARGETS)
    assert tally.findings("new", TARGETS).leak_evidence_log10 < 0
    assert tally.findings("new", TARGETS).leak_detector_log10 < 0.5
    assert tally.findings("old", TARGETS).leak_evidence_log10 > 3
    assert tally.findings("old", TARGETS).leak_detector_log10 > 3
    assert tally.findings("never", TARGETS).leak_upper_bound_ratio == pytest.approx(1.0)


def test_disagreement_on_retained_classes_is_evidence_of_drift_alone() -> None:
    tally = Tally()
    tally.take("a", {"s": Counts(retained=100, disagreements=40)}, TARGETS)
    findings = tally.findings("s", TARGETS)
    assert findings.drift_evidence_log10 > 3
    assert findings.leak_evidence_log10 == pytest.approx(0.0)


def test_nothing_is_lost_or_counted_twice_when_the_monitor_is_killed_at_any_moment(
    tmp_path: Path,
) -> None:
    """The saved counts may be older than the last ones; the replicas' totals bring the rest."""
    rng = random.Random(3)
    path = tmp_path / "evidence.json"
    tally = Tally.load(path)
    truth = {"a": 0, "b": 0}
    for _ in range(300):
        replica = rng.choice(["a", "b"])
        truth[replica] += rng.randrange(3)
        tally.take(replica, {"s": leaks(truth[replica])}, TARGETS)
        if rng.random() < 0.3:
            tally.save(path)
        if rng.random() < 0.1:
            tally = Tally.load(path)
    for replica, number in truth.items():
        tally.take(replica, {"s": leaks(number)}, TARGETS)
    assert tally.total("s") == leaks(sum(truth.values()))


def test_a_dead_replicas_counts_and_the_detector_survive_a_restart(tmp_path: Path) -> None:
    before = Tally()
    before.take("dead", {"s": Counts(matches=40, leaks=3, retained=10)}, TARGETS)
    before.save(tmp_path / "evidence.json")
    after = Tally.load(tmp_path / "evidence.json")
    after.take("new", {"s": Counts(matches=1)}, TARGETS)
    before.take("new", {"s": Counts(matches=1)}, TARGETS)
    assert after.total("s") == Counts(matches=41, leaks=3, retained=10)
    assert after.findings("s", TARGETS) == before.findings("s", TARGETS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1, "totals": 3}'])
def test_a_damaged_file_begins_anew_and_says_so(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(text)
    assert Tally.load(path).total("s") == Counts()
    assert str(path) in caplog.text


def test_the_file_stays_small_however_many_replicas_and_stacks_there_were(tmp_path: Path) -> None:
    tally = Tally()
    for number in range(2 * REPLICAS):
        tally.take(f"r{number}", {f"s{number % (2 * STACKS)}": leaks(1)}, TARGETS)
    tally.save(tmp_path / "evidence.json")
    assert (tmp_path / "evidence.json").stat().st_size < 100_000
    assert tally.total(f"s{2 * STACKS - 1}") != Counts()


def test_a_stack_that_was_dropped_and_returns_is_not_counted_twice() -> None:
    tally = Tally()
    tally.take("a", {"s": leaks(5)}, TARGETS)
    for number in range(STACKS):
        tally.take("a", {f"s{number}": leaks(1)}, TARGETS)
    assert tally.total("s") == Counts()
    tally.take("a", {"s": leaks(6)}, TARGETS)
    assert tally.total("s") == leaks(6)
