"""The seam between a task and whoever solves it: what a method may see, and what it gives back.

Every method of `forgetting.methods`, ours and the field's, is a frozen dataclass of its own
hyper-parameters with one function, `learn`. It sees training and validation images; test images
never reach this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from forgetting.data.samples import ForgetData
from forgetting.erasure.edit import Erasure
from forgetting.models.targets import Pair
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        original: The bare backbone's model: what teachers are copied from. Never changed.
        model: The model that the tasks before this one left behind. Never changed.
        data: The images.
        number: 1 for the first task.
        carried: What this method returned as `Learned.carried` of the task before; None at first.
    """

    original: nn.Module
    model: nn.Module
    data: ForgetData
    number: int = 1
    carried: Any = None


@dataclass(frozen=True)
class Budget:
    """What a method of the field may spend: the same for all of them.

    Attributes:
        steps: Optimizer steps of one task.
        batch: Retain images a step, and at most as many forget images.
    """

    steps: int = 300
    batch: int = 48


@dataclass(frozen=True)
class Learned:
    """What a method made of a task.

    Attributes:
        model: A new model, eval mode, without gradients; same architecture and head as before.
        trainable: Numbers that the optimizer could change.
        stored: Numbers that must be kept to serve the result beside the backbone (all that can
            differ from the backbone; for an adapter its surviving pairs).
        steps: Optimizer steps taken.
        cpu_seconds: Of this process, for everything inside `learn`.
        groups_kept: Groups with an update; None where the method knows no groups.
        groups_total: Groups of the backbone; None likewise.
        update_norms: Frobenius norm of the update of each block's FFN, bottom to top; None where
            the method knows no groups.
        pairs: The surviving pairs by module path; None for a method that isn't low-rank.
        erasure: Of the feature; None for a method that edits none.
        carried: Handed to the same method's next task (importances, teachers); None if nothing.
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
    erasure: Erasure | None = None
    carried: Any = field(default=None, repr=False)


class Method(Protocol):
    """A way to forget. Implementations are frozen dataclasses of their hyper-parameters.

    Attributes:
        name: As in the tables and on the command line.
        grid: Settings to choose from on validation images, each a change to the defaults; the
            defaults themselves are always a candidate. Empty where nothing is tuned.
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
            task: Models and images; left as they are.
            budget: Steps and batch size. A method whose recipe fixes its own says so.
            generator: Source of all randomness.
            progress: Called at every look at the validation images; may raise to cancel.

        Raises:
            TrainingError: The loss became NaN, or there is nothing to learn from.
            TargetError: The model's FFNs are not recognised (low-rank methods only).
        """
        ...
