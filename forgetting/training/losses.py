"""The equations of a forget task, one function each.

    L = kappa L_k + mu L_m + beta L_f + sigma L_s + delta L_d + alpha L_a
    and, after each optimizer step, the proximal step of  lambda sum_l |B_l|

L_k, L_d and L_a are sums over the feature and the read-outs of several blocks.

GS-LoRA (Zhao et al., CVPR 2024) bounds the batch's mean cross-entropy by a constant that fits its
head's scale, and adds the group norm to the loss, which never gives an exact zero. Here the bound
is for each sample and fits any scale, and the group lasso is a proximal step, which gives exact
zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Turns regression values, which lie in 0..1, into logits that a cross-entropy can tell apart.
_RELEARNER_SCALE = 10.0


def chance_bound(classes: int, *, margin: float) -> float:
    """log K + margin: above log K a sample's class has less than chance probability 1/K.

    Such a class can't be the arg max, whatever the scale of the head. The margin (in nats) is for
    images that training hasn't seen.
    """
    return math.log(classes) + margin


def forget_bound(logits: Tensor, y: Tensor, *, margin: float, gap: float) -> float:
    """The bound of a task: log K and the larger of `margin` and `gap` times the head's own lead.

    The lead is the median, over the forget images, of z_y - max_other z before the task. It says
    how many nats this head puts between two classes: some 5 for a linear head, 30 for a cosine head
    of scale 64. A few nats more than log K would be no distance at all for the latter, and images
    that training hasn't seen would still be named.

    Args:
        logits: The backbone's logits of forget images (n, K).
        y: Their classes (n,).
        margin: In nats.
        gap: Share of the lead.
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    lead = float((own - other).median())
    return chance_bound(logits.shape[1], margin=max(margin, gap * lead))


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """CE_i = -log p_i(y_i) of each sample, in nats (n,)."""
    return F.cross_entropy(logits, y, reduction="none")


def forget_loss(logits: Tensor, y: Tensor, *, bound: float) -> Tensor:
    """L_f = mean_i ReLU(bound - CE_i): a sample beyond the bound isn't pushed further.

    Args:
        logits: (n, K).
        y: The class to forget of each sample (n,).
        bound: In nats; see `chance_bound`.
    """
    return F.relu(bound - cross_entropies(logits, y)).mean()


def own_distribution(logits: Tensor, *, forgotten: Tensor) -> Tensor:
    """softmax(z) over the classes that are kept; exactly 0 for the forgotten ones.

    Args:
        logits: The model's logits before the task (n, K).
        forgotten: Labels (k,).
    """
    kept = logits.index_fill(1, forgotten, -torch.inf)
    return kept.softmax(dim=1)


def retain_loss(logits: Tensor, target: Tensor) -> Tensor:
    """L_r = mean_i -sum_c t_ic log p_ic, the cross-entropy to a target distribution (n, K)."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def match_loss(logits: Tensor, target: Tensor, *, kept: Tensor) -> Tensor:
    """L_m = mean_i KL( t_i | p_i ) among the kept classes: answers stay, and so does confidence.

    Args:
        logits: The logits now (n, K).
        target: The backbone's logits (n, K).
        kept: Labels (k,). The softmax is over these.
    """
    now, then = logits[:, kept].log_softmax(dim=1), target[:, kept].log_softmax(dim=1)
    return F.kl_div(now, then, log_target=True, reduction="batchmean")


def spread(features: Tensor) -> float:
    """mean_i |t_i - mean t|^2 of features (n, dim)."""
    return float((features - features.mean(dim=0)).square().sum(dim=1).mean())


def feature_loss(embedding: Tensor, target: Tensor, *, spread: float) -> Tensor:
    """L_k = mean_i |e_i - t_i|^2 / spread: it holds retained features in place.

    Args:
        embedding: The features now (n, dim).
        target: The backbone's features of the same images (n, dim).
        spread: See `spread`, of all retained images.
    """
    return (embedding - target).square().sum(dim=1).mean() / spread


def dispersion_loss(embedding: Tensor, y: Tensor, *, centre: Tensor) -> Tensor:
    """L_d = ReLU( mean over pairs i != j of one class of cos(e_i - c, e_j - c) ).

    If the images of a class share a direction, seen from the retained classes' centre, the class
    can be relearned from a few of them. At 0 they share none. This is Spotter's intra-class
    dispersion (ICML 2026), but centred, so that it doesn't depend on where the embeddings lie.

    Args:
        embedding: Features of forget images (n, dim).
        y: Their classes (n,).
        centre: The retained classes' centre c (dim,).
    """
    direction = F.normalize(embedding - centre, dim=1)
    cosine = direction @ direction.T  # (n, dim) @ (dim, n) -> (n, n)
    pairs = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    return F.relu(cosine[pairs].mean()) if bool(pairs.any()) else embedding.sum() * 0.0


def relearner_loss(
    embedding: Tensor, y: Tensor, *, others: Tensor | None = None, ridge: float = 0.1
) -> Tensor:
    """L_a = ReLU( log C - CE of a relearner on images that it hasn't seen ).

    The relearner is what an attacker with a few labelled images would fit: a ridge regression from
    standardised features to the C classes of the batch. It is fitted in closed form on every other
    image of each class, and is differentiable. At log C it is at chance; then the loss is 0.

    Args:
        embedding: Features of forget images (n, dim).
        y: Their classes (n,). A class with a single image is left out.
        others: Features of retained images (m, dim). As many as a class has on average are one more
            class, so that a forgotten class is told neither from another one nor from the rest.
            They get no gradient, and the CE is that of forget images only.
        ridge: Added to the kernel's diagonal, in units of one image's mean square.
    """
    order = [torch.nonzero(y == label).flatten() for label in sorted(set(y.tolist()))]
    order = [rows for rows in order if len(rows) > 1]
    if others is not None and order:
        each = max(2, round(sum(map(len, order)) / len(order)))
        rest = others[:: max(1, len(others) // each)][:each].detach()  # from all retained classes
        order.append(torch.arange(len(embedding), len(embedding) + len(rest)))
        embedding = torch.cat([embedding, rest])
    classes = len(order)
    if classes < 2:
        return embedding.sum() * 0.0
    seen = torch.cat([rows[0::2] for rows in order])
    unseen = torch.cat([rows[1::2] for rows in order])
    both = torch.cat([seen, unseen])
    z = embedding[both]
    z = (z - z.mean(dim=0)) / (z.std(dim=0) + 1e-4) / z.shape[1] ** 0.5  # (m, dim), |z_i| ~ 1
    a, b = z[: len(seen)], z[len(seen) :]
    target = F.one_hot(torch.cat([torch.full_like(r[0::2], c) for c, r in enumerate(order)]))
    kernel = a @ a.T + ridge * torch.eye(
        len(a), device=a.device
    )  # (m1, dim) @ (dim, m1) -> (m1, m1)
    weights = torch.linalg.solve(kernel, target - 1 / classes)  # (m1, C)
    logits = _RELEARNER_SCALE * (b @ a.T) @ weights  # (m2, m1) @ (m1, C) -> (m2, C)
    asked = torch.cat([torch.full_like(r[1::2], c) for c, r in enumerate(order)])
    forget = slice(None) if others is None else asked < classes - 1
    return F.relu(math.log(classes) - F.cross_entropy(logits[forget], asked[forget]))


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
    """The threshold of one proximal step, on the scale of the optimizer's step.

    An Adam step moves each of a group's `size` numbers by about `rate` at most, so the group by
    rate * sqrt(size). The threshold is the share `strength` < 1 of that. A group whose gradients
    keep their direction grows faster; a group whose gradients are noise shrinks to zero.
    """
    return strength * rate * math.sqrt(size)
