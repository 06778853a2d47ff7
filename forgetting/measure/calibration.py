"""How well a model's probabilities are calibrated, and how far two models' answers are apart.

Published code often gets the divergence wrong: it swaps the arguments of `kl_div`, or takes the
mean over classes instead of the sum. Then two disjoint answers among 1,000 classes come out 99 %
alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ece(logits: Tensor, y: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error: sum_b n_b / n * |accuracy_b - confidence_b|, in 0..1.

    Bins of equal width over the confidence (Guo et al., ICML 2017). 0 if there are no samples.

    Args:
        logits: (n, K).
        y: Labels (n,).
        bins: Number of bins.
    """
    if len(y) == 0:
        return 0.0
    confidence, answer = logits.double().softmax(dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are (low, high]
    gap = (answer == y).double() - confidence
    return float(gap.new_zeros(bins).index_add_(0, place, gap).abs().sum() / len(y))


def jensen_shannon(first: Tensor, second: Tensor) -> float:
    """mean_i ( KL(p|m) + KL(q|m) ) / 2 in bits, m = (p + q) / 2, summed over classes: in 0..1.

    Args:
        first: One model's logits (n, K).
        second: Another model's logits for the same images (n, K).

    Raises:
        ValueError: The shapes differ, or there are no samples.
    """
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(
            "expected logits of two models for the same images, found shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    p, q = first.double().softmax(dim=1), second.double().softmax(dim=1)
    m = (p + q) / 2
    # H(m) - (H(p) + H(q)) / 2 is the same, but never takes the logarithm of zero.
    nats = _entropy(m) - (_entropy(p) + _entropy(q)) / 2
    return float((nats / math.log(2)).clamp(0, 1).mean())


def _entropy(p: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(p)
    return terms.sum(dim=1)
