"""The equations of a forget task, one function each.

    L = L_r + beta * L_f  and, after each optimizer step, the proximal step of  lambda sum_l |B_l|

GS-LoRA (Zhao et al., CVPR 2024) bounds the batch's mean cross-entropy by a constant in units of
its head's scale, and adds the group norm to the loss, which never gives a zero. Here the bound is
per sample and scale-free, and the group lasso is a proximal step, which gives exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def chance_bound(classes: int, *, margin: float) -> float:
    """log K + margin: above log K a sample's class has less than chance probability 1/K.

    Such a class can't be the arg max, whatever the scale of the head; the margin (in nats) is for
    images that training didn't see.
    """
    return math.log(classes) + margin


def forget_loss(logits: Tensor, y: Tensor, *, bound: float) -> Tensor:
    """L_f = mean_i ReLU(bound - CE_i): a sample that reached the bound is pushed no further.

    Args:
        logits: (n, K).
        y: The class to forget of each sample (n,).
        bound: In nats, see `chance_bound`.
    """
    return F.relu(bound - F.cross_entropy(logits, y, reduction="none")).mean()


def own_distribution(logits: Tensor, *, forgotten: Tensor) -> Tensor:
    """softmax(z) over the classes that are not forgotten; exactly 0 on those that are.

    Args:
        logits: The model's own before the task (n, K).
        forgotten: Labels (k,).
    """
    kept = logits.index_fill(1, forgotten, -torch.inf)
    return kept.softmax(dim=1)


def retain_loss(logits: Tensor, target: Tensor) -> Tensor:
    """L_r = mean_i -sum_c t_ic log p_ic, the cross-entropy to a target distribution (n, K)."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def group_norm(parts: Sequence[Tensor]) -> float:
    """|g| = sqrt(sum_p |p|_F^2) over the tensors of one group."""
    return math.sqrt(sum(float(p.detach().square().sum()) for p in parts))


def shrink(parts: Sequence[Tensor], *, threshold: float) -> bool:
    """The proximal operator of threshold * |g|, in place: g <- max(0, 1 - threshold / |g|) g.

    Returns:
        Whether the group is still non-zero. A zero group is exactly zero.
    """
    norm = group_norm(parts)
    factor = max(0.0, 1.0 - threshold / norm) if norm > 0 else 0.0
    with torch.no_grad():
        for part in parts:
            part.mul_(factor) if factor > 0 else part.zero_()
    return factor > 0


def prox_threshold(*, strength: float, rate: float, size: int) -> float:
    """The threshold of one proximal step in the optimizer's own scale.

    An Adam step moves each of a group's `size` numbers by at most about `rate`, the group by
    rate * sqrt(size). Only a share of that, `strength` < 1, is taken off again: a group whose
    gradients keep their direction outgrows it, one whose gradients are noise shrinks to zero.
    """
    return strength * rate * math.sqrt(size)
