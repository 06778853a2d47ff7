"""What every method of the field does around its steps: time them, look, and refuse a broken loss.

These methods choose nothing by the validation images: a look is for the eyes of whoever waits, so
that its time isn't counted as the method's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch import Tensor, nn

from forgetting.data.samples import ForgetData
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.training.progress import Progress, Tell


class Watch:
    """Starts with `learn`. Its seconds are those of the process without the looks."""

    def __init__(
        self,
        data: ForgetData,
        progress: Tell | None,
        *,
        phase: str,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._data, self._progress, self._phase, self._clock = data, progress, phase, clock
        self._started, self._looked = clock(), 0.0

    @property
    def cpu_seconds(self) -> float:
        return self._clock() - self._started - self._looked

    def after(
        self,
        step: int,
        model: nn.Module,
        *,
        steps: int,
        forget: Tensor,
        retain: Tensor,
        groups: Callable[[], int] = lambda: 0,
    ) -> None:
        """Look at about every tenth of the steps, and at the last one.

        Args:
            step: The step just done, from 1.
            model: Looked at in eval mode, handed back in the mode that it came in.
            steps: Of the whole run.
            forget: The step's forget loss (scalar).
            retain: All other terms of its loss (scalar).
            groups: How many groups are not zero; called only where there is a look.
        """
        due = step % max(1, steps // 10) == 0 or step == steps
        if self._progress is None or not due:
            return
        began = self._clock()
        training = model.training
        model.eval()
        data = self._data
        look = Progress(
            phase=self._phase,
            step=step,
            steps=steps,
            forget_loss=float(forget.detach()),
            retain_loss=float(retain.detach()),
            val_acc_f=share_right(model, data.val_forget.x, data.val_forget.y).value,
            val_acc_r=share_right(model, data.val_retain.x, data.val_retain.y).value,
            groups=groups(),
        )
        model.train(training)
        self._progress(look)
        self._looked += self._clock() - began


def finite(step: int, *, forget: Tensor, retain: Tensor, rate: float) -> Tensor:
    """forget + retain, to be descended.

    Raises:
        TrainingError: The sum is NaN or infinite.
    """
    loss = forget + retain
    if not math.isfinite(float(loss.detach())):
        raise TrainingError(
            f"training broke down at step {step}: forget loss {float(forget.detach())}, other "
            f"terms {float(retain.detach())}; lower the rate (now {rate:g}) or the weights"
        )
    return loss


def check_images(data: ForgetData) -> None:
    """A method that learns needs images of both sides.

    Raises:
        TrainingError: Naming the side that has none.
    """
    for name, samples in (("forget", data.forget), ("retain", data.retain)):
        if len(samples) == 0:
            raise TrainingError(f"the task has no {name} images to learn from")
