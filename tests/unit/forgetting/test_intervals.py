from __future__ import annotations

import math

import pytest
import torch

from forgetting.intervals import class_bootstrap, mean_interval, t_quantile


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


def test_bootstrap_of_one_outcome_has_no_width() -> None:
    values, classes = torch.ones(6), torch.tensor([0, 0, 1, 1, 2, 2])
    found = class_bootstrap(values, classes, generator=torch.Generator().manual_seed(0))
    assert found == (1.0, 1.0, 1.0)


def test_bootstrap_weighs_classes_alike_whatever_their_size() -> None:
    values = torch.tensor([1.0] + [0.0] * 9)
    classes = torch.tensor([4] + [2] * 9)
    found = class_bootstrap(values, classes, generator=torch.Generator().manual_seed(0))
    assert found == (0.5, 0.0, 1.0)


def test_bootstrap_is_as_wide_as_the_spread_of_the_classes_demands() -> None:
    # 30 classes, each wholly right or wholly wrong with 8 images: the images are not 240 trials.
    generator = torch.Generator().manual_seed(0)
    means = (torch.arange(30) % 2).float()
    found = class_bootstrap(
        means.repeat_interleave(8), torch.arange(30).repeat_interleave(8), generator=generator
    )
    over_classes = 2 * 1.96 * math.sqrt(0.25 / 30)
    assert found.high - found.low == pytest.approx(over_classes, rel=0.1)


def test_bootstrap_draws_the_samples_of_a_class_too() -> None:
    values = (torch.arange(100) % 2).float()
    generator = torch.Generator().manual_seed(0)
    found = class_bootstrap(values, torch.zeros(100, dtype=torch.int64), generator=generator)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
