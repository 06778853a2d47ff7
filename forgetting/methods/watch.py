"""What every published method does around its steps: measure time, look, refuse a broken loss.

These methods choose nothing by the validation images. They look at them only to show their
progress, so the time of a look doesn't count as the method's.
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
    """A stopwatch, started with `learn`. It counts CPU time of the process without the looks."""

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
        """Look about ten times in a run, and after the last step.

        Args:
            step: The step just taken, from 1.
            model: The model. It is measured in eval mode, and then has its old mode again.
            steps: Steps of the whole run.
            forget: The step's forget loss (scalar).
            retain: All other terms of its loss (scalar).
            groups: Counts the groups that aren't zero. Called only for a look.
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
    """The whole loss, forget + retain.

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


def check_images(data: ForgetData, *, retain: bool = True) -> None:
    """Check that there are forget images, and retain images where they are needed.

    Raises:
        TrainingError: One of them is missing. The message says which.
    """
    needed = {"forget": data.forget, **({"retain": data.retain} if retain else {})}
    for name, samples in needed.items():
        if len(samples) == 0:
            raise TrainingError(f"the task has no {name} images to learn from")
