from __future__ import annotations

import pytest
import torch

from forgetting.bench.recipes import RECIPES, recipe_for
from forgetting.bench.setting import (
    Setting,
    adversarial_order,
    class_order,
    parse_settings,
    task_classes,
)
from forgetting.errors import DataError

NAMES = [f"c{i:03}" for i in range(242)]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("single 100-20", {}, [Setting(100, 1, 20)]),
        ("4x20", {"classes": 100}, [Setting(100, 4, 20)]),
        ("continual 4x20", {}, [Setting(242, 4, 20)]),
        ("100-20", {"shots": 4}, [Setting(100, 1, 20, shots=4)]),
        ("4x20", {"classes": 100, "missing": 5}, [Setting(100, 4, 20, missing=5)]),
        ("single 100-5 100-50", {}, [Setting(100, 1, 5), Setting(100, 1, 50)]),
        ("single 100-5, 2x9", {"classes": 100}, [Setting(100, 1, 5), Setting(100, 2, 9)]),
        ("4x20 4x20", {"classes": 100}, [Setting(100, 4, 20)]),
    ],
)  # fmt: skip
def test_setting_is_read_as_the_papers_write_it(
    text: str, options: dict[str, int], expected: list[Setting]
) -> None:
    assert list(parse_settings(text, available=242, **options)) == expected


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no setting"),
        ("single", {}, "no setting"),
        ("4x", {}, "unknown setting '4x'"),
        ("0x5", {}, "forgets nothing"),
        ("4x0", {}, "forgets nothing"),
        ("300-20", {}, "needs 300 classes, the image set has 242"),
        ("4x20", {"classes": 300}, "needs 300 classes, the image set has 242"),
        ("100-20", {"classes": 50}, "has 100 classes, --classes says 50"),
        ("4x20", {"classes": 81}, "needs 82 classes .80 to forget and at least 2 to keep., 81"),
        ("4x20", {"classes": 86, "missing": 5}, "needs 87 classes .*5 without images"),
        ("4x20", {"shots": 0}, "at least 1 shot"),
        ("4x20", {"missing": -1}, "missing classes, found -1"),
        ("4x20", {"classes": 0}, "--classes"),
    ],
)
def test_impossible_setting_is_refused_with_a_sentence(
    text: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        parse_settings(text, available=242, **options)


def test_names_tell_settings_apart_and_tasks_have_the_papers_names() -> None:
    setting = Setting(100, 4, 20, shots=4, missing=5)
    assert setting.name == "100-4x20-4shot-missing5"
    assert [setting.task_name(i) for i in (1, 2, 3, 4)] == ["100-20", "80-20", "60-20", "40-20"]


def test_every_class_has_one_role_and_tasks_continue_each_other() -> None:
    setting = Setting(100, 4, 20, missing=5)
    order = class_order(NAMES, setting, seed=3)
    tasks = task_classes(order, setting)
    assert len(set(order)) == 100
    for number, task in enumerate(tasks):
        assert sorted(task.retained + task.forget + task.earlier) == sorted(order)
        assert len(task.forget) == 20
        assert len(task.earlier) == 20 * number
        assert len(task.missing) == 5
        assert set(task.missing) <= set(task.retained)
    for before, after in zip(tasks, tasks[1:], strict=False):
        assert set(after.earlier) == {*before.earlier, *before.forget}


def test_seed_draws_classes_and_order() -> None:
    setting = Setting(100, 4, 20)
    first = class_order(NAMES, setting, seed=0)
    assert first == class_order(NAMES, setting, seed=0)
    assert set(first) != set(class_order(NAMES, setting, seed=1))


def test_recipe_follows_the_data_unless_one_is_named() -> None:
    assert recipe_for("omniglot_small") is RECIPES["omniglot"]
    assert recipe_for("somebody's folder") is RECIPES["default"]
    assert recipe_for("digits", name="omniglot") is RECIPES["omniglot"]
    assert recipe_for("digits", steps=7).config.steps == 7
    with pytest.raises(DataError, match="unknown recipe 'cifar'; expected one of digits"):
        recipe_for("digits", name="cifar")
    with pytest.raises(DataError, match="at least 1 step"):
        recipe_for("digits", steps=0)


def test_an_adversary_leaves_the_nearest_class_of_each_forgotten_one_behind() -> None:
    # Pairs (a, b), (c, d), (e, f) lie in three directions; a and b are closest to each other.
    means = torch.tensor(
        [[9.0, 0, 0], [9, 0.1, 0], [0, 9, 0], [0, 9, 1], [0, 0, 9], [2, 0, 9], [-3, -3, -3]]
    )
    order = adversarial_order(tuple("abcdefg"), means)
    assert order == tuple("gecafdb")
    setting = Setting(7, 1, 2, order="adversarial")
    assert setting.name == "7-1x2-adversarial"
    (task,) = task_classes(order, setting)
    assert set(task.forget) == {"b", "d"}
    assert set(task.retained) == {"a", "c", "e", "f", "g"}
