"""E-values find a real leak, and are wrong by chance no more often than promised."""

from __future__ import annotations

import numpy as np
import pytest

from serving.monitoring.evidence import detect, log10_detection, log10_evidence, quiet, upper_bound


def test_no_trials_are_no_evidence() -> None:
    assert log10_evidence(0, 0, target=0.02) == pytest.approx(0.0)
    assert log10_detection(quiet(0.02)) == 0.0
    assert upper_bound(0, 0) == pytest.approx(1.0)


def test_a_lost_adapter_is_proven_within_four_matches() -> None:
    assert log10_evidence(4, 4, target=0.02) >= 3


def test_quiet_traffic_speaks_against_a_leak() -> None:
    assert log10_evidence(500, 0, target=0.02) < -1


def test_evidence_grows_with_hits_and_falls_with_silence() -> None:
    many, few = log10_evidence(np.array([100, 200]), np.array([10, 5]), target=0.02)
    middle = log10_evidence(100, 5, target=0.02)
    assert many > middle > few


def test_evidence_against_a_high_target_is_finite() -> None:
    for target in (0.3, 0.98, 0.995):
        assert np.isfinite(log10_evidence(1000, 10, target=target))
        assert np.isfinite(log10_evidence(1000, 1000, target=target))


def test_false_alarms_ever_stay_below_what_ville_promises() -> None:
    """2,000 streams of 50,000 matches at exactly the target rate, read after every match."""
    rng = np.random.default_rng(7)
    target, length = 0.01, 50_000
    # The evidence rises only at a hit, so it is enough to compute it there.
    at = np.cumsum(rng.geometric(target, size=(2000, 640)), axis=1)  # (runs, hits): trial numbers
    assert at[:, -1].min() > length, "every stream must reach its full length"
    hits = np.broadcast_to(np.arange(1, at.shape[1] + 1), at.shape)
    alarms = (log10_evidence(at, hits, target=target) >= 2) & (at <= length)
    assert alarms.any(axis=1).mean() <= 0.01


def test_detector_keeps_its_promised_run_length_while_nothing_changes() -> None:
    """The promise: at 3, a false alarm after 999 steps on average. Runs end after 4,000 steps."""
    rng = np.random.default_rng(11)
    target, runs, steps = 0.02, 300, 4000
    state = np.tile(quiet(target), (runs, 1))
    length = np.full(runs, steps)
    for step in range(steps):
        hits = (rng.random(runs) < target).astype(np.int64)
        state = detect(state, np.ones(runs, dtype=np.int64), hits, target=target)
        alarmed = log10_detection(state) >= 3
        length = np.where(alarmed, np.minimum(length, step + 1), length)
    assert length.mean() >= 999


def test_detector_sees_a_change_after_a_quiet_month_long_before_the_evidence() -> None:
    target = 0.02
    state = detect(quiet(target), 20_000, 100, target=target)
    assert log10_evidence(20_000, 100, target=target) < -10
    trials = 0
    while log10_detection(state) < 5:
        state = detect(state, 10, 5, target=target)
        trials += 10
    assert trials <= 20
    assert log10_evidence(20_000 + trials, 100 + trials // 2, target=target) < 0


@pytest.mark.parametrize(("rate", "most_median"), [(0.01, 0.02), (0.002, 0.006)])
def test_upper_bound_holds_at_every_moment(rate: float, most_median: float) -> None:
    """300 streams of 5,000 trials. The bound is lowest just before a hit: it is checked there."""
    rng = np.random.default_rng(5)
    misses, last = 0, []
    for _ in range(300):
        outcomes = rng.random(5000) < rate
        before = np.append(np.flatnonzero(outcomes), len(outcomes))  # trials just before each hit
        bounds = upper_bound(before, np.arange(len(before)))
        misses += int(bounds.min() < rate)
        last.append(bounds[-1])
    assert misses / 300 <= 0.05
    assert np.median(last) <= most_median


def test_upper_bound_without_a_leak_is_what_the_docs_say() -> None:
    bounds = upper_bound(np.array([50, 200, 1000]), np.zeros(3, dtype=np.int64))
    assert bounds == pytest.approx([0.078, 0.02, 0.004], rel=0.1)


def test_upper_bound_is_one_when_everything_leaks() -> None:
    assert upper_bound(40, 40) == pytest.approx(1.0)


@pytest.mark.parametrize(("trials", "hits", "target"), [(1, 2, 0.1), (5, -1, 0.1), (1, 1, 1.5)])
def test_impossible_counts_are_refused(trials: int, hits: int, target: float) -> None:
    with pytest.raises(ValueError, match="can't be|between"):
        log10_evidence(trials, hits, target=target)
