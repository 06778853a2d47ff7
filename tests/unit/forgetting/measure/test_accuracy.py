from __future__ import annotations

import math

import pytest
import torch

from forgetting.measure.accuracy import Share, by_class, drop, h_mean, most_hit, predict, right


def test_interval_agrees_with_wilsons_published_example() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, method 3.
    low, high = Share(81, 263).interval
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = Share(0, 20).interval
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


def test_interval_of_nothing_says_nothing() -> None:
    assert Share(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_interval_covers_the_truth_about_95_times_of_100(share: float) -> None:
    covered = 0.0
    for hits in range(101):
        low, high = Share(hits, 100).interval
        if low <= share <= high:
            covered += math.comb(100, hits) * share**hits * (1 - share) ** (100 - hits)
    assert 0.92 <= covered <= 0.98


def test_accuracy_is_the_arg_max_over_all_classes() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.1, 0.2], [3.0, 2.0, 1.0]])
    assert right(logits, torch.tensor([0, 2, 1])) == Share(2, 3)
    assert by_class(logits, torch.tensor([0, 2, 0])) == {0: Share(2, 2), 2: Share(1, 1)}


def test_h_is_the_harmonic_mean_of_what_is_kept_and_what_is_dropped() -> None:
    # GS-LoRA (CVPR 2024), table 3, second task: 71.1, 70.9 before, 4.9 after.
    assert h_mean(0.711, 0.709 - 0.049) == pytest.approx(0.6845, abs=1e-4)
    assert h_mean(0.9, 0.0) == 0.0
    assert h_mean(0.0, 0.9) == 0.0


def test_drop_is_before_less_after() -> None:
    assert drop(Share(9, 10), Share(1, 5)) == pytest.approx(0.7)


def test_most_hit_counts_retained_classes_only() -> None:
    answers = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    logits = torch.nn.functional.one_hot(answers, 4).float()
    assert most_hit(logits, forgotten=torch.tensor([0])) == Share(2, 8)
    assert most_hit(logits[:3], forgotten=torch.tensor([0])) == Share(0, 3)
    assert most_hit(logits[:0], forgotten=torch.tensor([0])) == Share(0, 0)


def test_prediction_in_batches_equals_prediction_at_once() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x = torch.randn(10, 4)
    assert torch.allclose(predict(model, x, batch=3), model(x), atol=1e-6)
    assert len(predict(model, x[:0])) == 0
