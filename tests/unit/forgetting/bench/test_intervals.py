from __future__ import annotations

import math

import pytest
import torch

from forgetting.bench.intervals import mean_interval, t_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)],
)
def test_quantile_agrees_with_the_published_table(freedom: int, quantile: float) -> None:
    assert t_quantile(0.975, freedom=freedom) == pytest.approx(quantile, abs=6e-4)


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
