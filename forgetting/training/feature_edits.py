"""The closed form inside a trained task: erase before training, and once more after it.

The first erasure takes away what a linear reader could tell the forgotten classes by. Training
moves the features, and a little of that comes back in other directions. The second erasure takes it
away, as far as the retained classes can afford it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from forgetting.data.samples import ForgetData, Samples
from forgetting.erasure.edit import (
    LowRankEdit,
    chained,
    composed,
    edit_point,
    install_edit,
    installed_edit,
)
from forgetting.erasure.leace import fit_edit
from forgetting.erasure.statistics import statistics_of
from forgetting.errors import TargetError
from forgetting.measure.accuracy import right
from forgetting.training.pools import Pools, answers

# Ranks to try for the second erasure, as shares of the first one's rank.
SECOND_RANKS = (1.0, 0.75, 0.5, 0.25)
# What erasing a class may take, as a share of the class's part of the feature (the feature's width
# divided by the number of classes). Taking all of it leaves too little for the classes that are
# kept: ten tasks of 10 of Omniglot's 120 classes lost 15 points on validation images when each took
# 10 of 128 dimensions, and none when each took 6.
CLASS_SHARE = 0.5


def edit_before(
    model: nn.Module, pools: Pools, data: ForgetData, *, share: float
) -> LowRankEdit | None:
    """Fit a task's erasure and put it into `model`, on top of those that it has.

    It is fitted without the augmented copies, which would blur the classes' means.

    Args:
        model: The model. It is changed.
        pools: The samples at the lowest cut of `model`.
        data: The task.
        share: Most dimensions to take, as a share of the feature's width. A task also takes at
            most `CLASS_SHARE` of its classes' part of the feature, but at least one dimension.

    Returns:
        The erasure. None if the model's feature can't be edited, or if `share` is less than one
        dimension.
    """
    try:
        width = edit_point(model)
    except TargetError:
        return None
    if share * width < 1:
        return None
    part = width * len(set(data.forget.y.tolist())) / pools.forget_target.shape[1]
    most = max(1, int(min(share * width, CLASS_SHARE * part)))
    retain = pools.originals(Samples(pools.retain_embedding, pools.retain.y))
    forget = pools.originals(Samples(pools.forget_embedding, pools.forget.y))
    erasure = _fitted(model, retain, forget, data=data, most=most)
    install_edit(model, composed([erasure], below=installed_edit(model)))
    return erasure


def edit_after(
    model: nn.Module, pools: Pools, data: ForgetData, *, first: LowRankEdit, cut: int, cost: float
) -> LowRankEdit:
    """Chain a second erasure to the first, for what came back in training.

    It takes the highest rank in `SECOND_RANKS` at which the validation images lose at most `cost`
    of their accuracy against the model before the task.

    Args:
        model: The model, trained with `first` in place. It is changed.
        pools: The samples at `cut`.
        data: The task.
        first: The erasure that the model was trained with.
        cut: The block that the pools' activations enter.
        cost: Share of the validation images, 0..1.

    Returns:
        Both as one erasure; `first` alone if every rank costs too much.
    """
    below = installed_edit(model)
    retain, forget = (
        Samples(answers(model, samples, cut=cut)[0], samples.y)
        for samples in map(pools.originals, (pools.retain, pools.forget))
    )
    least = math.ceil(pools.val_right - cost * len(pools.val_retain))
    for share in SECOND_RANKS:
        most = max(1, round(share * first.rank))
        second = _fitted(model, retain, forget, data=data, most=most)
        install_edit(model, composed([second], below=below))
        _, logits = answers(model, pools.val_retain, cut=cut)
        if right(logits, pools.val_retain.y).hits >= least:
            return chained(first, second)
    if below is not None:
        install_edit(model, below)
    return first


def _fitted(
    model: nn.Module, retain: Samples, forget: Samples, *, data: ForgetData, most: int
) -> LowRankEdit:
    """Fit an erasure of rank `most` at most to features (n, dim) of retain and forget images."""
    vit: Any = model
    return fit_edit(
        statistics_of(retain.x, retain.y),
        statistics_of(forget.x, forget.y),
        head=vit.get_classifier(),
        earlier=sorted(set(data.forgotten.tolist()) - set(forget.y.tolist())),
        most=most,
    )
