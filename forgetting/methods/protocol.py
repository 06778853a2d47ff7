"""The interface of a method: what it may see of a task, and what it returns.

Every method in `forgetting.methods` is a frozen dataclass of its hyper-parameters with one
function, `learn`. It sees training and validation images, and never test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from forgetting.data.samples import ForgetData
from forgetting.models.targets import Pair
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        original: The bare backbone's model, from which teachers are copied. Never changed.
        model: The model that the earlier tasks made. Never changed.
        data: The images.
        number: Number of the task; 1 for the first.
        carried: `Learned.carried` of this method's last task; None in the first task.
    """

    original: nn.Module
    model: nn.Module
    data: ForgetData
    number: int = 1
    carried: Any = None


@dataclass(frozen=True)
class Budget:
    """What a method may spend on a task. It is the same for all methods that others published.

    Attributes:
        steps: Optimizer steps in a task.
        batch: Retain images in a step, and at most as many forget images.
    """

    steps: int = 300
    batch: int = 48


@dataclass(frozen=True)
class Learned:
    """What a method made of a task.

    Attributes:
        model: A new model in eval mode, without gradients. Its architecture is that of the old one.
        trainable: How many numbers the optimizer could change.
        stored: How many numbers must be kept beside the backbone to serve the result: all that may
            differ from the backbone, or an adapter's surviving pairs.
        steps: Optimizer steps taken.
        cpu_seconds: CPU time of this process inside `learn`.
        groups_kept: Number of groups with an update; None if the method has no groups.
        groups_total: Number of groups in the backbone; None if the method has no groups.
        update_norms: Frobenius norm of the update of each block's FFN, bottom to top; None if the
            method has no groups.
        pairs: The surviving pairs by module path; None if the method isn't low-rank.
        carried: What the same method's next task gets (importances, teachers); None if nothing.
    """

    model: nn.Module = field(repr=False)
    trainable: int
    stored: int
    steps: int
    cpu_seconds: float
    groups_kept: int | None = None
    groups_total: int | None = None
    update_norms: tuple[float, ...] | None = None
    pairs: Mapping[str, Pair] | None = field(default=None, repr=False)
    carried: Any = field(default=None, repr=False)


class Method(Protocol):
    """A way to forget. Implementations are frozen dataclasses of their hyper-parameters.

    Attributes:
        name: The method's name in the tables and on the command line.
        grid: Settings to choose from on validation images. Each one is a change to the defaults.
            The defaults are always a candidate too. Empty if nothing is tuned.
    """

    name: ClassVar[str]
    grid: ClassVar[tuple[Mapping[str, float], ...]]

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """Forget `task.data.forget`.

        Args:
            task: Models and images. They aren't changed.
            budget: Steps and batch size. A method with a fixed recipe may ignore it, and says so.
            generator: Source of all randomness.
            progress: Called at every look at the validation images; may raise to cancel.

        Raises:
            TrainingError: The loss became NaN, or there is nothing to learn from.
            TargetError: The model's FFNs are not recognised (low-rank methods only).
        """
        ...
