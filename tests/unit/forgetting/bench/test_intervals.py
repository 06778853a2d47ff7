from __future__ import annotations

import math

import pytest
import torch

from forgetting.bench.intervals import mean_interval


# Half of a 95 % interval in standard errors, to more digits than a table shows.
@pytest.mark.parametrize(
    ("runs", "half"),
    [
        (2, 12.706205),
        (3, 4.302653),
        (4, 3.182446),
        (5, 2.776445),
        (10, 2.262157),
        (31, 2.042272),
        (1001, 1.962339),
    ],
)
def test_half_width_is_the_quantile_of_students_t(runs: int, half: float) -> None:
    # Half of the runs at -1 and half at 1 (one more at 0 where their number is odd).
    values = [-1.0] * (runs // 2) + [0.0] * (runs % 2) + [1.0] * (runs // 2)
    error = math.sqrt(2 * (runs // 2) / (runs - 1) / runs)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(0, abs=1e-12)
    assert (high - low) / 2 / error == pytest.approx(half, abs=1e-6)


def test_interval_agrees_with_a_hand_computation() -> None:
    # s = 1, so the half width is 4.303 / sqrt(3).
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert mean - low == pytest.approx(high - mean)


def test_one_run_says_nothing_about_the_spread() -> None:
    assert mean_interval([0.5]) == (0.5, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_interval_over_three_runs_covers_the_truth_about_95_times_of_100() -> None:
    runs = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    intervals = [mean_interval(values) for values in runs]
    covered = sum(i.low <= 0 <= i.high for i in intervals) / len(intervals)
    assert 0.935 <= covered <= 0.965
