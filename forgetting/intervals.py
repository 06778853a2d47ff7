"""Intervals of a mean: Student's t over seeds, and a bootstrap over classes, then samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A mean with the two ends of its interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t-interval over independent runs; from minus to plus infinity for one run alone.

    Raises:
        ValueError: No values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("expected at least one value, found none")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_quantile((1 + level) / 2, freedom=n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def t_quantile(p: float, *, freedom: int) -> float:
    """The quantile of Student's t for 0.5 <= p < 1, by bisection."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if odd:
        total = total if freedom > 1 else 0.0
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2


def class_bootstrap(
    values: Tensor,
    classes: Tensor,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of the mean over classes of each class's mean.

    Classes are drawn with replacement, then each drawn class's samples: what was measured on a few
    identities is a statement about identities, not only about their images.

    Args:
        values: One figure per sample (n,), such as 1 for right and 0 for wrong.
        classes: The label of each (n,).
        generator: Of the draws.
        draws: Their number.
        level: Of the interval.

    Raises:
        ValueError: No values.
    """
    if len(values) == 0:
        raise ValueError("expected at least one value, found none")
    own = [values[classes == label].double() for label in sorted(set(classes.tolist()))]
    mean = float(torch.stack([v.mean() for v in own]).mean())
    count = len(own)
    # drawn[b, j] is one resample's mean for the class in place j of draw b.
    chosen = torch.randint(count, (draws, count), generator=generator)
    drawn = torch.empty(draws, count, dtype=torch.float64)
    for c, v in enumerate(own):
        places = chosen == c
        times = int(places.sum())
        picks = torch.randint(len(v), (times, len(v)), generator=generator)
        drawn[places] = v[picks].mean(dim=1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.mean(dim=1).quantile(ends).tolist()
    return Interval(mean, low, high)
