"""The closed form before training, and again after it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from forgetting.data.image_set import ImageSet, class_index, indices, replay, to_tensors
from forgetting.data.samples import ForgetData, Samples
from forgetting.erasure.edit import composed, installed_edit
from forgetting.measure.accuracy import right
from forgetting.models.backbone import Backbone
from forgetting.models.prefix import lowest_cut
from forgetting.training.feature_edits import edit_after, edit_before
from forgetting.training.pools import Pools, answers, make_pools


@pytest.fixture(scope="module")
def data(digit_images: ImageSet, backbone: Backbone) -> ForgetData:
    generator = torch.Generator().manual_seed(0)
    kept = [name for name in digit_images.classes if name != "0"]

    def samples(split: str, *, gone: bool) -> Samples:
        rows = (
            indices(digit_images, split, classes=["0"])[:40]
            if gone
            else replay(digit_images, per_class=12, generator=generator, classes=kept, split=split)
        )
        return Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))

    return ForgetData(
        forget=samples("train", gone=True),
        retain=samples("train", gone=False),
        earlier=Samples(torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
        val_forget=samples("val", gone=True),
        val_retain=samples("val", gone=False),
        forgotten=torch.tensor([class_index(digit_images, "0")]),
    )


@pytest.fixture
def model(backbone: Backbone) -> nn.Module:
    return copy.deepcopy(backbone.model)


@pytest.fixture
def pools(model: nn.Module, data: ForgetData) -> Pools:
    return make_pools(model, data, copies=1, generator=torch.Generator().manual_seed(0))


def _right(model: nn.Module, samples: Samples) -> int:
    return right(answers(model, samples, cut=lowest_cut(model))[1], samples.y).hits


def test_erased_class_is_gone_before_a_step_was_taken(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    images = len(pools.val_forget)
    assert _right(model, pools.val_forget) > 0.7 * images
    erasure = edit_before(model, pools, data, share=0.1)
    assert erasure is not None
    assert erasure.rank == 1  # one class needs one dimension, although three are allowed
    assert _right(model, pools.val_forget) <= 0.05 * images


def test_share_below_one_dimension_erases_nothing(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    assert edit_before(model, pools, data, share=0.02) is None
    assert installed_edit(model) is None


def test_model_whose_feature_cannot_be_edited_goes_without(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    model.head_drop = nn.Sequential()
    assert edit_before(model, pools, data, share=0.1) is None


def test_second_erasure_is_what_the_model_then_has_in_one(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    first = edit_before(model, pools, data, share=0.1)
    assert first is not None
    both = edit_after(model, pools, data, first=first, cut=lowest_cut(model), cost=1.0)
    assert both.rank == 2
    installed = installed_edit(model)
    assert installed is not None
    again = composed([both])
    assert torch.allclose(again.matrix, installed.matrix, atol=1e-4)
    assert torch.allclose(again.offset, installed.offset, atol=1e-4)


def test_erasure_that_costs_too_much_is_not_made(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    first = edit_before(model, pools, data, share=0.1)
    assert first is not None
    before = installed_edit(model)
    kept = edit_after(model, pools, data, first=first, cut=lowest_cut(model), cost=-1.0)
    assert kept is first
    after = installed_edit(model)
    assert before is not None
    assert after is not None
    assert torch.equal(after.matrix, before.matrix)


def test_second_tasks_erasure_follows_the_first_ones(
    model: nn.Module, pools: Pools, data: ForgetData
) -> None:
    first = edit_before(model, pools, data, share=0.1)
    assert first is not None
    below = installed_edit(model)
    fresh = make_pools(model, _next_task(data), copies=0, generator=torch.Generator())
    second = edit_before(model, fresh, _next_task(data), share=0.1)
    assert second is not None
    found, expected = installed_edit(model), composed([second], below=below)
    assert found is not None
    assert torch.equal(found.matrix, expected.matrix)


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (4, 2), (6, 3)])
def test_a_task_takes_half_of_its_classes_part_of_the_feature_at_most(
    untrained: Callable[..., Backbone], count: int, rank: int
) -> None:
    model = untrained(classes=12).model  # 12 features, 1 for each class
    with torch.no_grad():  # it names what is to be forgotten more often than by chance
        model.get_parameter("head.bias")[:count] += 1
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 12
    x = torch.randn(120, 1, 8, 8, generator=generator) + y[:, None, None, None] * 0.5
    gone = y < count
    forget, retain = Samples(x[gone], y[gone]), Samples(x[~gone], y[~gone])
    data = ForgetData(
        forget=forget,
        retain=retain,
        earlier=Samples(torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
        val_forget=forget,
        val_retain=retain,
        forgotten=torch.arange(count),
    )
    erasure = edit_before(
        model, make_pools(model, data, copies=0, generator=generator), data, share=1.0
    )
    assert erasure is not None
    assert erasure.rank == rank


def _next_task(data: ForgetData) -> ForgetData:
    """The next task: forgets the class of the first retained image, after class 0."""
    label = int(data.retain.y[0])

    def part(samples: Samples, *, gone: bool) -> Samples:
        rows = (samples.y == label) if gone else (samples.y != label)
        return Samples(samples.x[rows], samples.y[rows])

    return ForgetData(
        forget=part(data.retain, gone=True),
        retain=part(data.retain, gone=False),
        earlier=data.forget,
        val_forget=part(data.val_retain, gone=True),
        val_retain=part(data.val_retain, gone=False),
        forgotten=torch.tensor([*data.forgotten.tolist(), label]),
    )
