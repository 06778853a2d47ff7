"""What every method must satisfy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from forgetting.data.samples import Samples
from forgetting.errors import DataError, TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.methods import METHODS, method, method_class
from forgetting.methods.protocol import Budget, Learned, Method, Task
from forgetting.models.backbone import fingerprint
from forgetting.training.progress import Progress

MakeTask = Callable[..., Task]

FULL = ("l2", "ewc", "mas", "lwf", "der", "der++", "fdr", "scrub", "scrub-s")
PAIRS = ("gs_lora_published", "gs_lora", "gs_lora++")
NEWER = ("salun", "delete", "duck", "scar", "boundary_shrink", "ssd", "slug", "acu")
FIELD = (*FULL, *NEWER, "lirf", "retrain", "head_mask", *PAIRS)
LEARNING = tuple(name for name in FIELD if name != "head_mask")
# These draw nothing at random, take another number of steps, use no retain images.
EXACT = ("head_mask", "slug", "acu")
STEPS = {"head_mask": 0, "ssd": 0, "slug": 1, "acu": 0, "gs_lora_published": 4}
WITHOUT_RETAIN = ("delete", "boundary_shrink")
SMALL = Budget(steps=3, batch=6)


def made(name: str) -> Method:
    return method(name, {"epochs": 2, "batch": 6} if name == "gs_lora_published" else None)


def learn(name: str, task: Task, *, seed: int = 0, budget: Budget = SMALL) -> Learned:
    return made(name).learn(task, budget=budget, generator=torch.Generator().manual_seed(seed))


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    return {name for name in new if name not in old or not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("name", FIELD)
def test_same_seed_gives_the_same_bits_and_nothing_given_is_changed(
    noise_task: MakeTask, name: str
) -> None:
    task = noise_task()
    before, images = fingerprint(task.model), task.data.forget.x.clone()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = learn(name, task)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"
    torch.manual_seed(2)
    again = learn(name, task)
    assert not changed(first.model, again.model)
    assert fingerprint(task.model) == before
    assert torch.equal(task.data.forget.x, images)
    if name not in EXACT:
        assert changed(first.model, learn(name, task, seed=1).model)


@pytest.mark.parametrize("name", FIELD)
def test_result_is_frozen_and_says_what_it_cost(noise_task: MakeTask, name: str) -> None:
    task = noise_task()
    learned = learn(name, task)
    assert not learned.model.training
    assert not any(p.requires_grad for p in learned.model.parameters())
    assert learned.steps == STEPS.get(name, SMALL.steps)
    assert learned.cpu_seconds > 0
    total = sum(p.numel() for p in task.model.parameters())
    head = sum(p.numel() for p in task.model.get_submodule("head").parameters())
    if name in FULL:
        assert learned.trainable == learned.stored == total - head
    assert (learned.pairs is not None) == (name in PAIRS)


@pytest.mark.parametrize("name", [n for n in LEARNING if n not in ("retrain", "acu")])
def test_head_is_left_alone(noise_task: MakeTask, name: str) -> None:
    task = noise_task()
    touched = changed(task.model, learn(name, task).model)
    assert touched
    assert not {n for n in touched if n.startswith("head.")}


@pytest.mark.parametrize("name", PAIRS)
def test_low_rank_methods_change_ffn_linears_only(noise_task: MakeTask, name: str) -> None:
    task = noise_task()
    learned = learn(name, task)
    assert learned.pairs is not None
    assert changed(task.model, learned.model) == {f"{path}.weight" for path in learned.pairs}
    assert all(".mlp.fc" in path for path in learned.pairs)


# On noise SCAR's surrogates all look like forgotten classes.
@pytest.mark.parametrize("name", [n for n in FIELD if n != "scar"])
def test_next_task_goes_on_from_the_last(noise_task: MakeTask, name: str) -> None:
    task = noise_task()
    first = learn(name, task)
    moved = replace(
        task.data,
        forget=Samples(task.data.retain.x[:3], torch.full((3,), 3)),
        forgotten=torch.tensor([3, 4, 5]),
    )
    second = learn(
        name, replace(task, model=first.model, data=moved, number=2, carried=first.carried)
    )
    assert second.model.state_dict().keys() == first.model.state_dict().keys()
    if name in FULL:  # a few steps from the last model, not from the original
        apart = [float((a - b).abs().max()) for a, b in _weights(first.model, second.model)]
        assert max(apart) < 10 * SMALL.steps * 1e-3


def _weights(a: nn.Module, b: nn.Module) -> Any:
    return zip(a.parameters(), b.parameters(), strict=True)


@pytest.mark.parametrize("name", [n for n in LEARNING if n not in WITHOUT_RETAIN])
def test_broken_loss_is_an_error_and_never_a_result(noise_task: MakeTask, name: str) -> None:
    task = noise_task()
    bad = replace(task.data.retain, x=task.data.retain.x * float("nan"))
    with pytest.raises(TrainingError, match="broke down at step|are not finite"):
        learn(name, replace(task, data=replace(task.data, retain=bad)))


@pytest.mark.parametrize("side", ["forget", "retain"])
@pytest.mark.parametrize("name", LEARNING)
def test_task_without_images_is_an_error(noise_task: MakeTask, name: str, side: str) -> None:
    if side == "retain" and name in WITHOUT_RETAIN:
        pytest.skip("it learns without retain images")
    task = noise_task()
    data = replace(task.data, **{side: task.data.earlier})
    with pytest.raises(TrainingError, match=f"no {side} images"):
        learn(name, replace(task, data=data))


@pytest.mark.parametrize("name", [n for n in LEARNING if n not in STEPS])
def test_budget_without_steps_is_an_error(noise_task: MakeTask, name: str) -> None:
    with pytest.raises(TrainingError, match="at least 1 step"):
        learn(name, noise_task(), budget=Budget(steps=0))


@pytest.mark.parametrize("name", ["l2", "gs_lora", "gs_lora_published"])
def test_progress_is_told_ten_times_and_can_cancel(noise_task: MakeTask, name: str) -> None:
    class Cancelled(Exception):
        pass

    def cancel(look: Progress) -> None:
        raise Cancelled

    looks: list[Progress] = []
    settings = {"epochs": 10, "batch": 6} if name == "gs_lora_published" else None
    for tell in (looks.append, cancel):
        run = method(name, settings).learn
        seeded = torch.Generator().manual_seed(0)
        if tell is cancel:
            with pytest.raises(Cancelled):
                run(noise_task(), budget=Budget(20, 6), generator=seeded, progress=tell)
        else:
            run(noise_task(), budget=Budget(20, 6), generator=seeded, progress=tell)
    assert [look.step for look in looks] == list(range(2, 21, 2))
    assert all(look.steps == 20 and look.phase == name for look in looks)


def test_looking_changes_nothing(noise_task: MakeTask) -> None:
    task, looks = noise_task(), list[Progress]()
    for name in ("ewc", "gs_lora_published"):
        watched = made(name).learn(
            task,
            budget=SMALL,
            generator=torch.Generator().manual_seed(0),
            progress=looks.append,
        )
        assert looks
        assert not changed(watched.model, learn(name, task).model)


@pytest.mark.parametrize("name", FIELD)
def test_every_setting_of_a_grid_differs_from_the_defaults(name: str) -> None:
    kind = method_class(name)
    assert kind.name == name
    candidates = [method(name), *(method(name, setting) for setting in kind.grid)]
    assert len(set(map(repr, candidates))) == len(candidates)
    assert len(kind.grid) <= 4


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(DataError, match="no method 'scrap'; the methods are l2, ewc"):
        method("scrap")
    with pytest.raises(DataError, match="l2 has no hyper-parameter 'beta'; it has strength, rate"):
        method("l2", {"beta": 1.0})
    assert set(FIELD) | {"lethe", "project"} == METHODS.keys()


def test_a_variant_names_its_own_changes() -> None:
    made = method("gs_lora:targets=both:grouping=matrix:rank=4", {"rank": 2.0, "beta": 0.5})
    assert made == replace(
        method("gs_lora", {"beta": 0.5}), targets="both", grouping="matrix", rank=4
    )  # type: ignore[call-arg, type-var]
    assert method("lethe:rank=4").config.rank == 4  # type: ignore[attr-defined]
    assert method("lethe").config.rank is None  # type: ignore[attr-defined]
    for name, words in (
        ("lethe:rank", "expected a variant like 'lethe:rank=4'"),
        ("lethe:rank=four", "rank is a number, not 'four'"),
        ("lethe:targets=head", "targets is one of ffn, attention, both, not 'head'"),
        ("lethe:rank=inf", "rank is a number, not 'inf'"),
        ("lethe:rank=4.7", "rank is a whole number"),
        ("gs_lora_published:betas=0.3", "betas can't be changed by name"),
        ("lethe:ranks=4", "has no hyper-parameter 'ranks'"),
    ):
        with pytest.raises(DataError, match=words):
            method(name)


FAST = {
    "l2": {"rate": 2e-3, "strength": 0.01},
    "ewc": {"rate": 2e-3, "samples": 20},
    "mas": {"rate": 2e-3, "samples": 20},
    "lwf": {"rate": 2e-3},
    "der": {"rate": 2e-3},
    "der++": {"rate": 2e-3},
    "fdr": {"rate": 2e-3, "weight": 2.0},
    "scrub": {"rate": 3e-3, "alpha": 0.5},
    "scrub-s": {"rate": 3e-3, "pull": 0.05, "alpha": 0.5},
    "lirf": {"rate": 3e-3, "attention": 30.0, "distil": 1.0},
    "head_mask": {},
    "gs_lora_published": {"epochs": 14, "batch": 48, "rate": 3e-2},
    "gs_lora": {},
    "gs_lora++": {},
    "gs_lora:targets=attention": {},
    "gs_lora:grouping=lora": {},
    "gs_lora:grouping=matrix": {},
}


@pytest.mark.parametrize("name", sorted(FAST))
def test_digits_are_forgotten_and_the_others_stay(digits_task: Task, name: str) -> None:
    data = digits_task.data
    learned = method(name, FAST[name]).learn(
        digits_task, budget=Budget(steps=30, batch=24), generator=torch.Generator().manual_seed(0)
    )

    def accuracies(model: nn.Module) -> tuple[float, float]:
        f, r = data.val_forget, data.val_retain
        return share_right(model, f.x, f.y).value, share_right(model, r.x, r.y).value

    before, after = accuracies(digits_task.model), accuracies(learned.model)
    assert before[0] > 0.7
    assert after[0] < before[0] - 0.3
    assert after[1] > before[1] - 0.25


def test_retrained_network_never_saw_what_is_forgotten(digits_task: Task) -> None:
    learned = method("retrain", {"rate": 3e-3}).learn(
        digits_task, budget=Budget(steps=30, batch=24), generator=torch.Generator().manual_seed(0)
    )
    data = digits_task.data
    assert share_right(learned.model, data.val_forget.x, data.val_forget.y).value <= 0.05
    assert share_right(learned.model, data.retain.x, data.retain.y).value > 0.15
    assert copy.deepcopy(learned.model) is not learned.model
