"""How a training run reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One look at the validation images.

    `moved` is how far retained features have gone from the backbone's (`losses.feature_loss`), if
    that is measured; `groups` is the number of groups that aren't zero.
    """

    phase: str
    step: int
    steps: int
    forget_loss: float
    retain_loss: float
    val_acc_f: float
    val_acc_r: float
    groups: int
    moved: float | None = None


Tell = Callable[[Progress], None]
