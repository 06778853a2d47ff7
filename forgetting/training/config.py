"""The hyper-parameters of `sparse_lora`, and what follows from them for one backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from forgetting.erasure.edit import Erasure
from forgetting.models.targets import Group

MOST_RANK = 8


@dataclass(frozen=True)
class TrainConfig:
    """One default for every task.

    Attributes:
        rank: Of every pair; None takes the highest up to `MOST_RANK` at which the stored pairs
            stay within `stored_share`.
        stored_share: Most numbers stored, as a share of the backbone's parameters.
        select_steps: Most steps of the first phase.
        refit_steps: Most steps of the second phase; None takes what `refit_steps_for` says.
        forget_batch: Most forget images a step.
        forget_per_class: Most forget images of one class a step. Where there are many classes, a
            step sees some of them, at least four images of each.
        retain_batch: Retain images a step.
        earlier_batch: Images of earlier forgotten classes a step, where there are any.
        rate: Peak learning rate of Adam.
        margin: Nats above log K that a forget sample is pushed to.
        beta: Weight of the forget loss.
        steer: Weight of the pull of forget images to the erased model's answer without the
            forgotten classes, so that they are not all pushed onto one retained class, and what
            the erasure took doesn't come back; 0 leaves it out.
        keep: Weight of the loss that holds retained features where they are; 0 leaves it out.
        disperse: Weight of the dispersion of forget features; 0 leaves it out.
        relearn: Weight of the loss against a relearner; 0 leaves it out.
        erase: Most dimensions that one task's erasure takes from the feature, as a share of its
            width; fewer where classes are many (`forgetting.training.erase.CLASS_SHARE`). 0 leaves
            the erasure out. A model whose feature can't be edited goes without.
        erase_cost: Most validation accuracy that erasing again after training may cost, against
            the model before the task.
        sparsity: Strength of the proximal step, a share of the optimizer's step (0..1).
        most_share: The first phase ends once at most this share of the groups is left, and at most
            this share enters the second, strongest first.
        copies: Augmented copies of each training image, beside the original.
        replay_per_class: Retain images of each class, at most; None takes more where there are
            few classes (`forgetting.task.run.REPLAY`).
        check_every: Steps between two looks at the validation images.
        patience: Looks without a better state before the second phase ends.
    """

    rank: int | None = None
    stored_share: float = 0.0128
    select_steps: int = 30
    refit_steps: int | None = None
    forget_batch: int = 48
    forget_per_class: int = 16
    retain_batch: int = 48
    earlier_batch: int = 12
    rate: float = 5e-3
    margin: float = 2.0
    beta: float = 1.0
    steer: float = 0.5
    keep: float = 3.0
    disperse: float = 1.0
    relearn: float = 2.0
    erase: float = 0.1
    erase_cost: float = 0.005
    sparsity: float = 0.4
    most_share: float = 0.5
    copies: int = 3
    replay_per_class: int | None = None
    check_every: int = 10
    patience: int = 3


def affordable_rank(
    model: nn.Module, groups: Sequence[Group], *, erasure: Erasure | None, config: TrainConfig
) -> int:
    """The highest rank, 1 to `MOST_RANK`, at which all that may be kept is affordable."""
    per_rank = sum(_sides(model, group) for group in groups[: most_groups(len(groups), config)])
    numbers = config.stored_share * sum(p.numel() for p in model.parameters())
    numbers -= 2 * erasure.stored if erasure is not None else 0
    return min(MOST_RANK, max(1, int(numbers / per_rank)))


def refit_steps_for(classes: int) -> int:
    """Most steps of the second phase for a model of so many classes.

    The more there are, the longer it takes to hold them: on Omniglot's 100, 90 steps cost about a
    point of Acc_r a task more than 240; 90 are enough for 10 and for 40 classes.
    """
    return min(300, max(90, round(2.25 * classes)))


def _sides(model: nn.Module, group: Group) -> int:
    """Numbers of a group's pairs at rank 1."""
    return sum(sum(model.get_submodule(path).weight.shape) for path in group.paths)  # type: ignore[misc, arg-type]


def most_groups(groups: int, config: TrainConfig) -> int:
    """How many of a backbone's groups enter the second phase at most."""
    return max(1, math.floor(config.most_share * groups))
