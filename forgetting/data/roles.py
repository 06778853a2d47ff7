"""What a task may learn from: the role of each class, and the images drawn for each role.

The product and the benchmark draw by the same rules, with other counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from forgetting.data.image_set import ImageSet, class_index, indices, replay
from forgetting.data.samples import ForgetData, Samples

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TaskClasses:
    """Class names of a task by role.

    Attributes:
        retained: Classes to keep. They are measured.
        forget: Classes to forget now.
        earlier: Classes that earlier tasks forgot.
        withheld: Other classes under erasure. They are neither replayed nor measured.
        missing: Classes in `retained` that have no training images.
    """

    retained: tuple[str, ...]
    forget: tuple[str, ...]
    earlier: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def under_erasure(self) -> tuple[str, ...]:
        return (*self.forget, *self.earlier, *self.withheld)


def training_data(
    images: ImageSet,
    classes: TaskClasses,
    *,
    samples: Callable[[Rows], Samples],
    replay_per_class: int | None,
    forget_per_class: int | None = None,
    generator: torch.Generator,
) -> ForgetData:
    """Draw the forget images, a replay of the other classes, and the validation images.

    Where there are no validation images, the training images take their place.

    Args:
        images: The image set.
        classes: The role of each class.
        samples: Turns positions in `images` into tensors.
        replay_per_class: Most images of each retained and each earlier class; None takes all.
        forget_per_class: Most images of each class to forget; None takes all.
        generator: Draws the images where there are more than that.
    """

    def drawn(names: Sequence[str], split: str, *, most: int | None) -> Samples:
        if most is None:
            return samples(indices(images, split, classes=names))
        rows = replay(images, per_class=most, generator=generator, classes=names, split=split)
        return samples(rows)

    kept = [name for name in classes.retained if name not in classes.missing]
    forget = drawn(classes.forget, "train", most=forget_per_class)
    retain = drawn(kept, "train", most=replay_per_class)
    val_forget = drawn(classes.forget, "val", most=forget_per_class)
    val_retain = drawn(kept, "val", most=replay_per_class)
    gone = [class_index(images, name) for name in classes.under_erasure]
    return ForgetData(
        forget=forget,
        retain=retain,
        earlier=drawn(classes.earlier, "train", most=replay_per_class),
        val_forget=val_forget if len(val_forget) else forget,
        val_retain=val_retain if len(val_retain) else retain,
        forgotten=torch.tensor(gone),
    )
