"""The hyper-parameters of `sparse_lora`, and what follows from them for one backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from forgetting.erasure.edit import LowRankEdit
from forgetting.models.targets import Group

MOST_RANK = 8


@dataclass(frozen=True)
class TrainConfig:
    """The defaults are meant for every task.

    Attributes:
        rank: Rank of every pair. None takes the highest up to `MOST_RANK` at which the stored pairs
            stay within `stored_share`.
        stored_share: Most numbers stored, as a share of the backbone's parameters.
        select_steps: Most steps of the first phase.
        refit_steps: Most steps of the second phase. None takes `refit_steps_for`.
        forget_batch: Most forget images in a step.
        forget_per_class: Most forget images of one class in a step. With many classes a step sees
            only some of them, with at least four images of each.
        retain_batch: Retain images in a step.
        earlier_batch: Images in a step of classes that earlier tasks forgot, if there are any.
        rate: Peak learning rate of Adam.
        margin: How far above log K a forget sample's loss is pushed, in nats.
        beta: Weight of the forget loss.
        steer: Weight of a pull on forget images towards the erased model's answer without the
            forgotten classes. It keeps them from all going to one retained class, and keeps what
            was erased from coming back. 0 leaves it out.
        keep: Weight of the loss that holds retained features in place. 0 leaves it out.
        disperse: Weight of the dispersion of forget features. 0 leaves it out.
        relearn: Weight of the loss against a relearner. 0 leaves it out.
        erase: Most dimensions that one task's erasure takes from the feature, as a share of its
            width. With many classes it takes fewer (`feature_edits.CLASS_SHARE`). 0 leaves the
            erasure out. A model whose feature can't be edited gets none.
        erase_cost: Most validation accuracy that erasing again after training may cost, against
            the model before the task.
        sparsity: Strength of the proximal step, as a share of the optimizer's step (0..1).
        most_share: Most groups that enter the second phase, as a share of all. The strongest are
            taken. The first phase ends as soon as no more are left.
        copies: Augmented copies of each training image, beside the original.
        replay_per_class: Most retain images of each class. None takes more if there are few
            classes (`forgetting.task.run.REPLAY`).
        check_every: Steps between two looks at the validation images.
        patience: The second phase ends after this many looks without a better state.
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
    model: nn.Module, groups: Sequence[Group], *, erasure: LowRankEdit | None, config: TrainConfig
) -> int:
    """The highest rank, 1 to `MOST_RANK`, at which all groups that may be kept can be stored."""
    per_rank = sum(_sides(model, group) for group in groups[: most_groups(len(groups), config)])
    numbers = config.stored_share * sum(p.numel() for p in model.parameters())
    numbers -= 2 * erasure.stored if erasure is not None else 0
    return min(MOST_RANK, max(1, int(numbers / per_rank)))


def refit_steps_for(classes: int) -> int:
    """Most steps of the second phase for a model with so many classes.

    More classes take longer to hold. With Omniglot's 100 classes, 90 steps lose about a point of
    Acc_r a task more than 240 steps do. For 10 and for 40 classes 90 steps are enough.
    """
    return min(300, max(90, round(2.25 * classes)))


def _sides(model: nn.Module, group: Group) -> int:
    """How many numbers a group's pairs have at rank 1."""
    return sum(sum(model.get_submodule(path).weight.shape) for path in group.paths)  # type: ignore[misc, arg-type]


def most_groups(groups: int, config: TrainConfig) -> int:
    """The most groups of a backbone that may enter the second phase."""
    return max(1, math.floor(config.most_share * groups))
