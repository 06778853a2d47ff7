"""The settings of the papers' tables: what is forgotten, in how many tasks, with how many images.

`single 100-20` forgets 20 of 100 classes in one task. `continual 4x20` forgets 20 classes in each
of 4 tasks. The seed decides which classes take part, and in which order. A random draw flatters,
so there is an order made by an adversary too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.data.image_set import ImageSet, indices
from forgetting.data.roles import TaskClasses
from forgetting.errors import DataError

_SINGLE = re.compile(r"(\d+)-(\d+)")
_CONTINUAL = re.compile(r"(\d+)x(\d+)")
Order = Literal["random", "adversarial"]
_EXAMPLES = "'single 100-20' (forget 20 of 100 classes) or '4x20' (4 tasks of 20 classes)"


@dataclass(frozen=True)
class Setting:
    """One sequence of tasks.

    Attributes:
        classes: Number of classes that the backbone knows.
        tasks: Number of tasks.
        per_task: Number of classes that each task forgets.
        shots: Most training images of a class, forgotten or retained; None for all.
        missing: Number of retained classes without training images.
        order: `random`, or `adversarial` (`adversarial_order`).
    """

    classes: int
    tasks: int
    per_task: int
    shots: int | None = None
    missing: int = 0
    order: Order = "random"

    @property
    def name(self) -> str:
        """The name in tables and files: `100-4x20`, `100-1x5-4shot`, `100-4x20-missing5`."""
        name = f"{self.classes}-{self.tasks}x{self.per_task}"
        name += "" if self.shots is None else f"-{self.shots}shot"
        name += f"-missing{self.missing}" if self.missing else ""
        return name if self.order == "random" else f"{name}-{self.order}"

    def task_name(self, number: int) -> str:
        """The papers' name of task `number` (from 1): classes known before - classes forgotten."""
        return f"{self.classes - (number - 1) * self.per_task}-{self.per_task}"


def parse_settings(
    text: str,
    *,
    available: int,
    classes: int | None = None,
    shots: int | None = None,
    missing: int = 0,
    order: Order = "random",
) -> tuple[Setting, ...]:
    """Read `--setting`.

    Args:
        text: One or more of `C-Y` and `KxY`, optionally after the word `single` or `continual`.
        available: Number of classes in the image set.
        classes: Number of classes that take part, if the text doesn't say it; None for all.
        shots: See `Setting`.
        missing: See `Setting`.
        order: See `Setting`.

    Raises:
        DataError: The text can't be read, or the image set is too small for a setting.
    """
    words = [word for word in text.replace(",", " ").split() if word not in ("single", "continual")]
    if not words:
        raise DataError(f"no setting in {text!r}; expected {_EXAMPLES}")
    if classes is not None and classes < 1:
        raise DataError(f"expected --classes of at least 3, found {classes}")
    settings = []
    for word in words:
        if single := _SINGLE.fullmatch(word):
            known, per_task = int(single[1]), int(single[2])
            if classes not in (None, known):
                raise DataError(f"setting {word!r} has {known} classes, --classes says {classes}")
            setting = Setting(known, 1, per_task, shots, missing, order)
        elif continual := _CONTINUAL.fullmatch(word):
            tasks, per_task = int(continual[1]), int(continual[2])
            setting = Setting(classes or available, tasks, per_task, shots, missing, order)
        else:
            raise DataError(f"unknown setting {word!r}; expected {_EXAMPLES}")
        _check(setting, word, available=available)
        settings.append(setting)
    return tuple(dict.fromkeys(settings))


def _check(setting: Setting, word: str, *, available: int) -> None:
    if setting.tasks < 1 or setting.per_task < 1:
        raise DataError(f"setting {word!r} forgets nothing; expected {_EXAMPLES}")
    if setting.classes > available:
        raise DataError(
            f"setting {word!r} needs {setting.classes} classes, the image set has {available}"
        )
    if setting.shots is not None and setting.shots < 1:
        raise DataError(f"expected at least 1 shot, found {setting.shots}")
    if setting.missing < 0:
        raise DataError(f"expected 0 or more missing classes, found {setting.missing}")
    if setting.order == "adversarial" and 2 * setting.tasks * setting.per_task > setting.classes:
        raise DataError(
            f"setting {word!r} forgets more than half of {setting.classes} classes; the "
            "adversarial order retains the nearest class of each forgotten one"
        )
    needed = setting.tasks * setting.per_task + setting.missing + 2
    if needed > setting.classes:
        missing = f", {setting.missing} without images" if setting.missing else ""
        raise DataError(
            f"setting {word!r} needs {needed} classes ({setting.tasks * setting.per_task} to "
            f"forget{missing} and at least 2 to keep), {setting.classes} take part"
        )


def class_order(names: Sequence[str], setting: Setting, *, seed: int) -> tuple[str, ...]:
    """The classes that take part, in the seed's order. As in the papers, the last go first."""
    return tuple(random.Random(seed).sample(list(names), setting.classes))


def adversarial_order(order: Sequence[str], means: Tensor) -> tuple[str, ...]:
    """An order of the same classes in which each forgotten class leaves its nearest one behind.

    Of the two most alike classes one is forgotten and the other is retained, then of the next two,
    and so on: what is taken from the one must not be taken from the other. At most half of the
    classes can be forgotten so.

    Args:
        order: The classes in the seed's order.
        means: The backbone's mean feature of each class (n, dim), in the same order.
    """
    unit = F.normalize(means - means.mean(dim=0), dim=1)
    alike = (unit @ unit.T).fill_diagonal_(-torch.inf)  # (n, dim) @ (dim, n) -> (n, n)
    kept: list[int] = []
    gone: list[int] = []
    for _ in range(len(order) // 2):
        first, second = divmod(int(alike.argmax()), len(order))
        kept, gone = [*kept, min(first, second)], [*gone, max(first, second)]
        alike[[first, second]] = alike[:, [first, second]] = -torch.inf
    alone = sorted(set(range(len(order))) - {*kept, *gone})
    # The last go first, so the pair that is most alike comes last.
    return tuple(order[i] for i in (*alone, *reversed(kept), *reversed(gone)))


def task_classes(order: Sequence[str], setting: Setting) -> tuple[TaskClasses, ...]:
    """The role of each class in each task. The missing classes are the first in the order."""
    tasks = []
    for number in range(setting.tasks):
        first = len(order) - (number + 1) * setting.per_task
        last = first + setting.per_task
        tasks.append(
            TaskClasses(
                retained=tuple(order[:first]),
                forget=tuple(order[first:last]),
                earlier=tuple(order[last:]),
                missing=tuple(order[: setting.missing]),
            )
        )
    return tuple(tasks)


def check_images(images: ImageSet, setting: Setting) -> None:
    """Check that every class has images to learn from and to report on.

    Raises:
        DataError: A class hasn't. The message names the first one.
    """
    for split in ("train", "test"):
        with_images = set(images.labels[indices(images, split)].tolist())
        lacking = [n for i, n in enumerate(images.classes) if i not in with_images]
        if lacking:
            raise DataError(
                f"{images.name}: class {lacking[0]!r} has no {split} image, so setting "
                f"{setting.name} can't be measured"
            )
