from __future__ import annotations

import math

import pytest
import torch

from forgetting.attacks.verification import verification
from forgetting.measure.features import Features


def _at(angles: list[float], labels: list[int]) -> Features:
    radians = torch.tensor(angles) * math.pi / 180
    return Features(
        torch.stack([radians.cos(), radians.sin()], dim=1),
        torch.zeros(len(labels), 2),
        torch.tensor(labels),
    )


def test_every_pair_counts_once() -> None:
    found = verification(_at([0, 1, 2, 90, 91], [0, 0, 0, 1, 1]), chosen=torch.tensor([0]))
    assert found is not None
    assert (found.genuine, found.impostor) == (3, 6)
    assert (found.auc, found.rank_1) == (1.0, 1.0)
    assert found.tar is None  # 6 impostor pairs can't show a rate of 0.1 %
    both = verification(_at([0, 1, 90, 91], [0, 0, 1, 1]), chosen=torch.tensor([0, 1]))
    assert both is not None
    assert (both.genuine, both.impostor) == (2, 4)


def test_identity_that_looks_like_another_is_not_told_from_it() -> None:
    found = verification(_at([0, 60, 1, 61], [0, 0, 1, 1]), chosen=torch.tensor([0]))
    assert found is not None
    assert found.auc < 0.5
    assert found.rank_1 == 0.0


def test_acceptance_is_at_the_stated_rate_of_false_accepts() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(200, 8, generator=generator)
    y = torch.arange(100).repeat(2)
    found = verification(Features(embedding, embedding, y), chosen=torch.arange(100))
    assert found is not None
    assert found.tar is not None
    assert found.tar <= 0.05  # nothing is in these features
    assert found.auc == pytest.approx(0.5, abs=0.1)
    same = torch.cat([embedding[:100], embedding[:100]])
    assert verification(Features(same, same, y), chosen=torch.arange(100)).tar == 1.0  # type: ignore[union-attr]


def test_without_a_genuine_pair_there_is_nothing_to_measure() -> None:
    assert verification(_at([0, 10, 20], [0, 1, 2]), chosen=torch.tensor([0])) is None
