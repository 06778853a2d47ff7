"""The methods that take no retain image, no training, or one layer: what each of them promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.methods import method
from forgetting.methods.acu import fitted, without
from forgetting.methods.boundary_shrink import nearest_labels
from forgetting.methods.delete import masked
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.salun import strongest
from forgetting.methods.ssd import dampened
from forgetting.methods.surrogates import shuffled, surrogates

TRAINED = {"delete": 1e-3, "salun": 1e-3, "duck": 1e-3, "boundary_shrink": 3e-4}
NO_RETAIN = ("delete", "boundary_shrink")
BUDGET = Budget(steps=60, batch=48)


def _learn(name: str, task: Task, **setting: float) -> Learned:
    chosen = method(name, setting)
    return chosen.learn(task, budget=BUDGET, generator=torch.Generator().manual_seed(0))


def _changed(task: Task, learned: Learned) -> set[str]:
    before, after = task.model.state_dict(), learned.model.state_dict()
    return {name for name in after if not torch.equal(before[name], after[name])}


def _acc_f(task: Task, learned: Learned) -> float:
    found = task.data.val_forget
    return share_right(learned.model, found.x, found.y).value


@pytest.mark.parametrize("name", sorted(TRAINED))
@pytest.mark.parametrize("head", ["digits_task", "cosine_task"])
def test_training_forgets_and_leaves_the_head(
    request: pytest.FixtureRequest, name: str, head: str
) -> None:
    task: Task = request.getfixturevalue(head)
    learned = _learn(name, task, rate=TRAINED[name])
    before = share_right(task.model, task.data.val_forget.x, task.data.val_forget.y).value
    assert _acc_f(task, learned) < before - 0.3
    assert not any(n.startswith("head.") for n in _changed(task, learned))


@pytest.mark.parametrize("name", NO_RETAIN)
def test_methods_without_retain_images_do_not_look_at_them(digits_task: Task, name: str) -> None:
    data = digits_task.data
    none = Samples(data.retain.x[:0], data.retain.y[:0])
    alone = _learn(name, replace(digits_task, data=replace(data, retain=none)))
    whole = _learn(name, digits_task)
    for first, second in zip(alone.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_scar_needs_retain_images_in_its_first_task_only(digits_task: Task) -> None:
    data = digits_task.data
    first = _learn("scar", digits_task, rate=3e-4)
    assert _acc_f(digits_task, first) < 1.0
    none = replace(data, retain=Samples(data.retain.x[:0], data.retain.y[:0]))
    again = _learn("scar", replace(digits_task, data=none, carried=first.carried))
    assert again.carried is not None
    with pytest.raises(TrainingError, match="no retain images"):
        _learn("scar", replace(digits_task, data=none))


def test_salun_changes_no_weight_outside_its_mask(digits_task: Task) -> None:
    learned = _learn("salun", digits_task, share=0.1, rate=1e-3)
    changed = sum(
        int((a != b).sum())
        for a, b in zip(learned.model.parameters(), digits_task.model.parameters(), strict=True)
    )
    total = sum(p.numel() for p in digits_task.model.parameters())
    assert 0 < changed <= 0.1 * total
    mask = strongest({"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([[0.5]])}, share=2 / 3)
    assert mask["a"].all()
    assert not mask["b"].any()


def test_ssd_dampens_what_matters_more_to_the_forget_images_and_nothing_else(
    digits_task: Task,
) -> None:
    theta = torch.tensor([1.0, 1.0, 1.0])
    forget, retain = torch.tensor([8.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 1.0])
    found = dampened(theta, forget=forget, retain=retain, alpha=3.0, strength=1.0)
    assert found.tolist() == [0.25, 1.0, 1.0]
    learned = _learn("ssd", digits_task, alpha=3.0)
    assert learned.steps == 0
    assert 0 < learned.stored < sum(p.numel() for p in learned.model.parameters())


def test_slug_changes_one_layer(digits_task: Task) -> None:
    learned = _learn("slug", digits_task)
    assert len(_changed(digits_task, learned)) == 1
    assert _acc_f(digits_task, learned) <= 0.2


@pytest.mark.parametrize("head", ["digits_task", "cosine_task"])
def test_acu_changes_the_head_only_and_takes_images_out_exactly(
    request: pytest.FixtureRequest, head: str
) -> None:
    task: Task = request.getfixturevalue(head)
    learned = _learn("acu", task)
    assert all(name.startswith("head.") for name in _changed(task, learned))
    assert _acc_f(task, learned) == 0.0
    generator = torch.Generator().manual_seed(0)
    x: Any = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y: Any = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    ridge = 0.1 * float((x[:30].T @ x[:30]).diagonal().mean())
    whole = fitted(x, y, ridge=ridge / float((x.T @ x).diagonal().mean()))
    never = fitted(x[:30], y[:30], ridge=ridge / float((x[:30].T @ x[:30]).diagonal().mean()))
    assert torch.allclose(without(whole, x[30:], y[30:]).weight, never.weight, atol=1e-9)


def test_masked_answers_keep_the_ratios_of_the_others() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 5.0]])
    found = masked(logits, forgotten=torch.tensor([3]))
    assert float(found[0, 3]) == 0.0
    assert torch.allclose(found[0, :3], logits[0, :3].softmax(dim=0))


def test_label_across_the_boundary_is_a_retained_one(digits_task: Task) -> None:
    data = digits_task.data
    found = nearest_labels(digits_task.model, data.forget, bound=0.4, forgotten=data.forgotten)
    assert len(found) == len(data.forget)
    assert not torch.isin(found, data.forgotten).any()


def test_surrogates_have_the_images_own_mean_and_no_tile_is_lost() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 16, 16, generator=generator) * 3 + 1
    moved = shuffled(x, generator=generator)
    assert not torch.equal(moved, x)
    assert torch.equal(moved.flatten(1).sort(dim=1).values, x.flatten(1).sort(dim=1).values)
    crops = surrogates(x, count=20, own=0.0, generator=generator)
    assert crops.shape == (20, 1, 16, 16)
    assert float(crops.mean()) == pytest.approx(float(x.mean()), abs=1e-3)
    assert float(crops.std()) == pytest.approx(float(x.std()), rel=1e-2)
