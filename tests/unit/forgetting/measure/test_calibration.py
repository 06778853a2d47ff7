from __future__ import annotations

import math

import pytest
import torch

from forgetting.measure.calibration import ece, jensen_shannon


def logits_of(p: list[list[float]]) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_disjoint_answers_are_one_bit_apart_for_any_number_of_classes(classes: int) -> None:
    first, second = torch.full((2, 3, classes), -torch.inf)
    first[:, 0] = 0.0
    second[:, 1] = 0.0
    assert jensen_shannon(first, second) == 1.0


def test_equal_answers_are_zero_bits_apart() -> None:
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    assert jensen_shannon(logits, logits + 3) == pytest.approx(0, abs=1e-7)


def test_divergence_agrees_with_the_definition_by_hand() -> None:
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): KL(p|m) = log2 4/3, KL(q|m) = (log2 2/3 + 1)/2.
    by_hand = (math.log2(4 / 3) + (math.log2(2 / 3) + math.log2(2)) / 2) / 2
    found = jensen_shannon(logits_of([[1.0, 0.0]]), logits_of([[0.5, 0.5]]))
    assert found == pytest.approx(by_hand)


def test_divergence_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        jensen_shannon(torch.zeros(2, 3), torch.zeros(3, 3))


def test_three_right_of_four_at_three_quarters_confidence_is_calibrated() -> None:
    logits = logits_of([[0.75, 0.25]] * 4)
    assert ece(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)
    assert ece(logits, torch.tensor([1, 1, 1, 1])) == pytest.approx(0.75)


def test_calibration_error_weighs_bins_by_their_samples() -> None:
    # Three sure and right; one at 0.6 and wrong, in another bin.
    logits = logits_of([[1.0, 0.0]] * 3 + [[0.6, 0.4]])
    assert ece(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.6 / 4)


def test_overconfidence_in_one_bin_is_not_cancelled_by_another() -> None:
    logits = logits_of([[0.9, 0.1], [0.6, 0.4]])
    assert ece(logits, torch.tensor([1, 0])) == pytest.approx((0.9 + 0.4) / 2)


def test_nothing_measured_is_no_error() -> None:
    empty = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    assert ece(*empty) == 0.0
