from __future__ import annotations

import torch

from forgetting.attacks.class_membership import class_membership
from forgetting.measure.features import Features

CLASSES, GONE = 14, torch.tensor([0, 1, 2, 3, 4, 5])


def answers(labels: list[int], *, peak: float, seed: int) -> Features:
    """Ten images a class. `peak` is how far the nearest class's logit stands out."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels).repeat_interleave(10)
    logits = torch.randn(len(y), CLASSES, generator=generator)
    logits[torch.arange(len(y)), 6 + torch.randint(8, (len(y),), generator=generator)] += peak
    return Features(torch.zeros(len(y), 1), logits, y)


def by_kind(deleted: Features, strangers: Features) -> dict[str, float]:
    return {s.score: s.auc for s in class_membership(deleted, strangers, forgotten=GONE)}


def test_deleted_classes_with_an_unlike_fall_are_told_from_strangers() -> None:
    found = by_kind(
        answers(GONE.tolist(), peak=6.0, seed=0), answers(list(range(50, 56)), peak=0.0, seed=1)
    )
    assert found["image"] > 0.9
    assert found["class"] == 1.0


def test_deleted_classes_that_answer_like_strangers_are_not_found() -> None:
    found = by_kind(
        answers(GONE.tolist(), peak=3.0, seed=0),
        answers(list(range(50, 70)), peak=3.0, seed=1),
    )
    assert 0.3 < found["image"] < 0.7


def test_a_masked_class_gives_nothing_away_by_its_own_probability() -> None:
    deleted = answers(GONE.tolist(), peak=3.0, seed=0)
    pushed = deleted.logits.index_fill(1, GONE, -torch.inf)
    strangers = answers(list(range(50, 56)), peak=3.0, seed=1)
    assert by_kind(Features(deleted.embedding, pushed, deleted.y), strangers) == by_kind(
        deleted, strangers
    )


def test_few_classes_on_a_side_give_no_figure() -> None:
    assert (
        class_membership(
            answers([0, 1], peak=1.0, seed=0),
            answers(list(range(50, 56)), peak=1.0, seed=1),
            forgotten=GONE,
        )
        == ()
    )
