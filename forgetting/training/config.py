"""The hyper-parameters of `sparse_lora`, and what follows from them for one backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from forgetting.models.targets import Group, Pair

PUBLISHED_RANK = 8
"""The papers' rank of every pair, in every block."""
LEAST_RANK = 4


@dataclass(frozen=True)
class TrainConfig:
    """The defaults are meant for every task.

    Attributes:
        rank: Rank of every pair. None takes `affordable_rank`.
        select_steps: Most steps of the first phase.
        refit_steps: Steps of the second phase. None takes `refit_steps_for`.
        forget_batch: Most forget images in a step.
        forget_per_class: Most forget images of one class in a step. With many classes a step sees
            only some of them, with at least four images of each.
        retain_batch: Retain images in a step.
        earlier_batch: Images in a step of classes that earlier tasks forgot, if there are any.
        rate: Peak learning rate of Adam.
        margin: How far above log K a forget sample's loss is pushed at least, in nats.
        gap: The same as a share of the head's own lead (`losses.forget_bound`).
        beta: Weight of the forget loss.
        steer: Weight of a pull on forget images towards the backbone's answer without the
            forgotten classes. It keeps them from all going to one retained class. 0 leaves it out.
        keep: Weight of the loss that holds retained features in place. 0 leaves it out.
        match: Weight of the loss that holds retained answers in place. 0 leaves it out.
        disperse: Weight of the dispersion of forget features. 0 leaves it out.
        relearn: Weight of the loss against a relearner. 0 leaves it out.
        deep_share: The last blocks, as a share of all, at whose outputs features are held,
            dispersed and relearned too. So a class goes where it is represented, and not only in
            the last map before the head. 0 leaves the feature alone.
        sparsity: Strength of the proximal step, as a share of the optimizer's step (0..1).
        most_share: Most groups that enter the second phase, as a share of all. The strongest are
            taken. The first phase ends as soon as no more are left.
        copies: Augmented copies of each training image, beside the original. None takes more of
            them where a class has few images (`pools.copies_for`).
        replay_per_class: Most retain images of each class. None takes more if there are few
            classes (`forgetting.task.run.REPLAY`).
        check_every: Steps between two looks at the validation images.
    """

    rank: int | None = None
    select_steps: int = 40
    refit_steps: int | None = None
    forget_batch: int = 48
    forget_per_class: int = 16
    retain_batch: int = 64
    earlier_batch: int = 32
    rate: float = 5e-3
    margin: float = 2.0
    gap: float = 0.5
    beta: float = 4.0
    steer: float = 0.5
    keep: float = 30.0
    match: float = 2.0
    disperse: float = 2.0
    relearn: float = 1.5
    deep_share: float = 0.5
    sparsity: float = 0.4
    most_share: float = 2 / 3
    copies: int | None = None
    replay_per_class: int | None = None
    check_every: int = 20


def affordable_rank(model: nn.Module, groups: Sequence[Group], *, config: TrainConfig) -> int:
    """The rank at which the groups that may be kept store as much as rank 8 in all groups would.

    The papers train rank 8 in every block, 1.28 % of a backbone of width 512. The same rank is a
    larger share of a narrower one, and a smaller share of a wider one: the rank is what a task
    needs, the share is what follows. At least `LEAST_RANK`, and at most half of the width.
    """
    width = min(min(model.get_submodule(p).weight.shape) for g in groups for p in g.paths)  # type: ignore[arg-type]
    rank = PUBLISHED_RANK * len(groups) // most_groups(len(groups), config)
    return max(min(LEAST_RANK, int(width)), min(rank, int(width) // 2))


def stored_ratio(model: nn.Module, pairs: Sequence[Pair]) -> float:
    """Numbers in the pairs, as a share of the backbone's."""
    return sum(a.numel() + b.numel() for a, b in pairs) / sum(p.numel() for p in model.parameters())


def refit_steps_for(classes: int) -> int:
    """Steps of the second phase for a model with so many classes: more take longer to hold."""
    return min(300, max(120, 2 * classes))


def most_groups(groups: int, config: TrainConfig) -> int:
    """The most groups of a backbone that may enter the second phase."""
    return max(1, math.floor(config.most_share * groups + 1e-9))
