"""The closed form as a method of the benchmark's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from forgetting.data.samples import Samples
from forgetting.errors import DataError, TargetError, TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.methods import METHODS, method
from forgetting.methods.closed_form import ClosedForm
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.models.backbone import fingerprint
from forgetting.training.progress import Progress

MakeTask = Callable[..., Task]


def _learn(task: Task, *, seed: int = 0, looks: list[Progress] | None = None) -> Learned:
    return ClosedForm().learn(
        task,
        budget=Budget(),
        generator=torch.Generator().manual_seed(seed),
        progress=None if looks is None else looks.append,
    )


def _without(task: Task, labels: list[int]) -> Samples:
    retain = task.data.retain
    left = ~torch.isin(retain.y, torch.tensor(labels))
    return Samples(retain.x[left], retain.y[left])


def test_table_has_it_with_its_grid() -> None:
    assert METHODS["project"] is ClosedForm
    assert [method("project", setting) for setting in ClosedForm.grid] == [
        ClosedForm(shrinkage=0.001),
        ClosedForm(shrinkage=0.1),
    ]


def test_digits_are_forgotten_in_no_steps_and_the_others_stay(digits_task: Task) -> None:
    data, learned = digits_task.data, _learn(digits_task)
    before = share_right(digits_task.model, data.val_retain.x, data.val_retain.y).value
    after = share_right(learned.model, data.val_retain.x, data.val_retain.y).value
    assert share_right(digits_task.model, data.val_forget.x, data.val_forget.y).value > 0.7
    assert share_right(learned.model, data.val_forget.x, data.val_forget.y).value <= 0.05
    assert after > before - 0.15  # by statistics of 96 other images
    assert (learned.steps, learned.trainable) == (0, 0)
    assert learned.stored == 2 * 2 * 32 + 2 * 32
    assert learned.pairs is None
    assert learned.groups_kept is None
    assert 0 < learned.cpu_seconds < 5


def test_second_task_follows_the_first_and_keeps_its_classes_forgotten(digits_task: Task) -> None:
    first = _learn(digits_task)
    data = digits_task.data
    again = data.retain.y == 7
    forget = Samples(data.retain.x[again], data.retain.y[again])
    second = _learn(
        replace(
            digits_task,
            model=first.model,
            number=2,
            data=replace(
                data,
                forget=forget,
                retain=_without(digits_task, [7]),
                earlier=data.forget,
                forgotten=torch.tensor([*data.forgotten.tolist(), 7]),
            ),
        )
    )
    assert second.model.state_dict().keys() == first.model.state_dict().keys()
    assert share_right(second.model, data.val_forget.x, data.val_forget.y).value <= 0.05
    val = data.val_retain.y == 7
    assert share_right(first.model, data.val_retain.x[val], data.val_retain.y[val]).value > 0.6
    assert share_right(second.model, data.val_retain.x[val], data.val_retain.y[val]).value <= 0.1


def test_no_weight_changes_and_the_seed_does_not_matter(noise_task: MakeTask) -> None:
    task = noise_task()
    before = fingerprint(task.model)
    one, other = _learn(task).model.state_dict(), _learn(task, seed=1).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    own = task.model.state_dict()
    assert {name for name in one if name not in own} == {"head_drop.matrix", "head_drop.offset"}
    assert all(torch.equal(one[name], own[name]) for name in own)
    assert fingerprint(task.model) == before


def test_result_is_frozen_and_was_looked_at_once(noise_task: MakeTask) -> None:
    looks: list[Progress] = []
    model = _learn(noise_task(), looks=looks).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert [(look.phase, look.step, look.steps) for look in looks] == [("project", 1, 1)]


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_task_without_images_is_an_error(noise_task: MakeTask, side: str) -> None:
    task = noise_task()
    with pytest.raises(TrainingError, match=f"no {side} images"):
        _learn(replace(task, data=replace(task.data, **{side: task.data.earlier})))


def test_broken_features_are_an_error_and_never_a_result(noise_task: MakeTask) -> None:
    task = noise_task()
    bad = replace(task.data.retain, x=task.data.retain.x * float("nan"))
    with pytest.raises(DataError, match="not finite"):
        _learn(replace(task, data=replace(task.data, retain=bad)))


def test_model_without_a_place_for_the_edit_is_refused(noise_task: MakeTask) -> None:
    task = noise_task()
    task.model.head_drop = nn.Sequential()
    with pytest.raises(TargetError, match="expected a dropout named `head_drop`"):
        _learn(task)
