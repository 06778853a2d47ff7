from __future__ import annotations

import math

import pytest
import torch

from forgetting.attacks.membership import (
    auc,
    entropy,
    max_prob,
    membership,
    separation,
    stranger_likeness,
    tpr_at,
)
from forgetting.measure.features import Features


def test_identical_sets_can_not_be_told_apart() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert auc(values, values) == 0.5
    assert auc(torch.zeros(3), torch.zeros(5)) == 0.5
    assert tpr_at(torch.zeros(3), torch.zeros(5), fpr=0.01) == 0.0


def test_separated_sets_are_told_apart_in_either_direction() -> None:
    high, low = torch.arange(10, 20).float(), torch.arange(10).float()
    up, down = separation("loss", high, low), separation("loss", low, high)
    assert (up.auc, up.advantage, up.tpr) == (1.0, 0.5, 1.0)
    assert (down.auc, down.advantage, down.tpr) == (0.0, 0.5, 1.0)


def test_auc_agrees_with_counting_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(5, (30,), generator=generator)
    second = torch.randint(4, (20,), generator=generator)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    assert auc(first, second) == pytest.approx(sum(pairs) / len(pairs))


def test_true_positives_are_counted_at_one_false_positive_of_a_hundred() -> None:
    second = torch.arange(200).float()  # two of them may be above the threshold, which is 197
    first = torch.tensor([197.0, 197.5, 300.0, 0.0])
    assert tpr_at(first, second, fpr=0.01) == 0.5
    # With fewer than a hundred, none may be.
    assert tpr_at(first, second[:50], fpr=0.01) == 0.75


def test_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 0 values"):
        auc(torch.zeros(3), torch.zeros(0))


def test_scores_agree_with_a_hand_computation() -> None:
    logits = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.25), -torch.inf]])
    assert max_prob(logits).item() == pytest.approx(0.5)
    assert entropy(logits).item() == pytest.approx(1.5 * math.log(2))


def test_confident_answers_are_not_ties() -> None:
    # In float32 both probabilities are exactly 1.
    logits = torch.tensor([[20.0, 0.0], [21.0, 0.0]])
    assert max_prob(logits)[0] < max_prob(logits)[1]


def test_memorised_images_are_members() -> None:
    y = torch.tensor([0, 1] * 10)
    sure = 6 * torch.nn.functional.one_hot(y, 3).float()
    train, test = Features(sure, sure, y), Features(sure, 0.1 * sure, y)
    assert [s.score for s in membership(train, test)] == ["loss", "max_prob", "entropy"]
    assert all(s.auc == 1.0 for s in membership(train, test))
    assert all(s.auc == 0.5 for s in membership(test, test))


def test_deleted_class_that_is_answered_too_evenly_is_found_too() -> None:
    generator = torch.Generator().manual_seed(0)
    strangers = 3 * torch.randn(40, 10, generator=generator)
    deleted = 0.01 * torch.randn(40, 10, generator=generator)
    for s in stranger_likeness(deleted, strangers):
        assert s.auc == 0.0
        assert s.advantage == 0.5
    for s in stranger_likeness(3 * torch.randn(400, 10, generator=generator), strangers):
        assert s.advantage < 0.15
