"""Images as tensors with their labels, and what a method may see of a task."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Images x (n, c, h, w), or their activations at a cut, and labels y (n,)."""

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class ForgetData:
    """What a method may see of a task: training and validation images, never test images.

    Attributes:
        forget: Images of the classes to forget.
        retain: A replay of the classes to keep. Classes without images are not in it.
        earlier: Images of classes that earlier tasks forgot; may be empty.
        val_forget: Validation images of the classes to forget.
        val_retain: Validation images of the classes to keep.
        forgotten: All labels under erasure (k,): this task's and those of earlier tasks.
    """

    forget: Samples
    retain: Samples
    earlier: Samples
    val_forget: Samples
    val_retain: Samples
    forgotten: Tensor
