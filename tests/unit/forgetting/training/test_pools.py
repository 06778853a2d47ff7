"""The samples of a task, and the order in which steps see them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from forgetting.data.samples import ForgetData, Samples
from forgetting.errors import TrainingError
from forgetting.models.backbone import Backbone
from forgetting.training.pools import (
    ClassShuffle,
    Shuffle,
    above_chance,
    answers,
    copies_for,
    make_pools,
)

Make = Callable[..., Backbone]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(untrained: Make) -> nn.Module:
    """Random weights, but it names class 3, which is to be forgotten, more often than by chance."""
    model = untrained().model
    with torch.no_grad():
        model.get_parameter("head.bias")[3] += 1
    return model


@pytest.fixture
def data() -> ForgetData:
    generator = _generator(5)

    def samples(*labels: int) -> Samples:
        y = torch.tensor(labels).repeat(3)
        return Samples(torch.randn(len(y), 1, 8, 8, generator=generator), y)

    return ForgetData(
        forget=samples(3),
        retain=samples(0, 1, 2),
        earlier=Samples(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)),
        val_forget=samples(3),
        val_retain=samples(0, 1, 2),
        forgotten=torch.tensor([3]),
    )


def test_every_row_comes_once_before_any_comes_twice() -> None:
    shuffle = Shuffle(7, generator=_generator())
    drawn = torch.cat([shuffle.next(2) for _ in range(7)])
    assert sorted(drawn[:7].tolist()) == list(range(7))
    assert sorted(drawn[7:].tolist()) == list(range(7))
    assert len(Shuffle(3, generator=_generator()).next(10)) == 3


def test_step_sees_several_images_of_each_class_that_it_sees() -> None:
    y = torch.arange(9).repeat(6)
    shuffle = ClassShuffle(y, generator=_generator())
    seen: set[int] = set()
    for _ in range(3):
        labels, counts = y[shuffle.next(12)].unique(return_counts=True)
        assert len(labels) == 3
        assert counts.tolist() == [4, 4, 4]
        seen |= set(labels.tolist())
    assert len(seen) == 9  # classes come in turn


def test_few_classes_share_a_step_and_each_has_its_most() -> None:
    y = torch.tensor([4] * 9 + [7] * 9)
    shuffle = ClassShuffle(y, generator=_generator())
    assert y[shuffle.next(12, most=5)].unique(return_counts=True)[1].tolist() == [5, 5]
    assert len(ClassShuffle(y[:0], generator=_generator()).next(12)) == 0


def test_copies_follow_the_originals_and_targets_leave_the_forgotten_out(
    model: nn.Module, data: ForgetData
) -> None:
    pools = make_pools(model, data, original=model, copies=2, generator=_generator())
    assert len(pools.retain) == 3 * len(data.retain)
    assert torch.equal(pools.retain.y, data.retain.y.repeat(3))
    alone = make_pools(model, data, original=model, copies=0, generator=_generator())
    assert torch.equal(pools.retain.x[: len(data.retain)], alone.retain.x)
    assert bool((pools.forget_target[:, 3] == 0).all())
    assert torch.allclose(pools.forget_target.sum(dim=1), torch.ones(len(pools.forget)))


@pytest.mark.parametrize(("shots", "copies"), [(1, 15), (4, 9), (6, 6), (10, 3), (100, 3)])
def test_few_shots_get_more_copies(shots: int, copies: int) -> None:
    assert copies_for(torch.arange(5).repeat(shots)) == copies


def test_samples_above_chance_are_counted_whatever_the_scale() -> None:
    logits = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0], [50.0, 0.0, 0.0]])
    assert above_chance(logits, torch.zeros(3, dtype=torch.int64)) == 2


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_images_that_are_not_finite_are_named(
    model: nn.Module, data: ForgetData, name: str
) -> None:
    broken = replace(getattr(data, name), x=getattr(data, name).x * math.nan)
    with pytest.raises(TrainingError, match=f"features of {name} images are not finite"):
        make_pools(
            model,
            replace(data, **{name: broken}),
            original=model,
            copies=1,
            generator=_generator(),
        )


def test_answers_do_not_depend_on_the_batch(model: nn.Module, data: ForgetData) -> None:
    pools = make_pools(model, data, original=model, copies=0, generator=_generator())
    whole, parts = (answers(model, pools.retain, cut=0, batch=n) for n in (256, 2))
    assert torch.allclose(whole.embedding, parts.embedding, atol=1e-6)
    assert torch.allclose(whole.logits, parts.logits, atol=1e-6)
    assert len(whole.blocks) == len(parts.blocks) == 3
