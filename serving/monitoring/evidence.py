"""Statistics of rare events from counts: an e-value, a change detector and an upper bound.

A trial is one Bernoulli outcome that should be rare: a match that the adapted weights still name
(a leak), or a retained sample on which adapted and unadapted weights disagree (drift). With S hits
among n trials and alternatives p_k = p0 * RATIOS_k,

    E_n = mean_k (p_k / p0)^S ((1 - p_k) / (1 - p0))^(n - S)

is a non-negative supermartingale under H0: P(hit | past) <= p0, so by Ville's inequality
P(E_n >= 1/a at any n) <= a. So it may be read after every trial, and the counts of replicas may be
summed.

`detect` is the Shiryaev-Roberts e-detector of Shin, Ramdas and Rinaldo (NEJSDS 2024). It discounts
a quiet past, so it shows a change soon even after a quiet month; in return it raises a false alarm
from time to time. `upper_bound` inverts the same mixture, with alternatives below p (Howard et al.
2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counted = int | NDArray[np.int64]

RATIOS = (1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
LOWER_RATIOS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85)
_LARGEST = 0.99
"""Largest alternative rate. At rate 1 a single trial without a hit would make E_n zero for good."""
_BISECTIONS = 40


def log10_evidence(trials: Counted, hits: Counted, *, target: float) -> Array:
    """log10 of E_n, in the shape of the counts; 2 is proof at 0.01, 3 at 0.001. Never infinite.

    Raises ValueError unless 0 <= hits <= trials and 0 < target < 1.
    """
    ratios = _log_ratios(trials, hits, target=target)
    return _log_mean(ratios) / math.log(10)


def quiet(target: float) -> Array:
    """The detector's state before any trial: log(M_k + 1) for each alternative, (K,)."""
    return np.zeros(len(_alternatives(target)))


def detect(state: Array, trials: Counted, hits: Counted, *, target: float) -> Array:
    """The state after one more batch of trials: M_k <- (M_k + 1) e_k, kept as log(M_k + 1).

    `state` (..., K). A batch is one step; its size must not depend on its outcomes. While nothing
    changes, it takes at least 1/a - 1 steps on average until `log10_detection` first reaches
    log10(1/a). Raises ValueError as `log10_evidence`.
    """
    return np.logaddexp(state + _log_ratios(trials, hits, target=target), 0.0)


def log10_detection(state: Array) -> Array:
    """log10 of mean_k (M_k + 1), (...); 0 when nothing indicates a change."""
    return _log_mean(state) / math.log(10)


def upper_bound(trials: Counted, hits: Counted, *, error: float = 0.05) -> Array:
    """Upper bound of the true rate, in the shape of the counts.

    With probability 1 - `error` it holds at all times, however often it is read. A rate p is
    refuted when the mixture over alternatives p * LOWER_RATIOS reaches 1/error. That mixture grows
    with p, so the rates that are not refuted are one interval; bisection finds its end.
    Raises ValueError unless 0 <= hits <= trials.
    """
    n, s = _check(trials, hits)
    ratios = np.asarray(LOWER_RATIOS)  # (K,)
    low = np.zeros(n.shape)
    high = np.ones(n.shape)
    for _ in range(_BISECTIONS):
        p = ((low + high) / 2)[..., None]  # (..., 1)
        odds = np.log((1 - ratios * p) / (1 - p))  # (..., K)
        logs = s[..., None] * np.log(ratios) + (n - s)[..., None] * odds
        refuted = _log_mean(logs) >= -math.log(error)
        low, high = np.where(refuted, low, p[..., 0]), np.where(refuted, p[..., 0], high)
    return high


def _alternatives(target: float) -> Array:
    if not 0 < target < 1:
        raise ValueError(f"target rate {target} is not between 0 and 1")
    return np.unique(np.minimum(target * np.asarray(RATIOS), max(_LARGEST, target)))


def _log_ratios(trials: Counted, hits: Counted, *, target: float) -> Array:
    """Log likelihood ratio of every alternative against the target: counts (...) -> (..., K)."""
    n, s = _check(trials, hits)
    p = _alternatives(target)  # (K,)
    ratios: Array = s[..., None] * np.log(p / target) + (n - s)[..., None] * np.log(
        (1 - p) / (1 - target)
    )
    return ratios


def _check(trials: Counted, hits: Counted) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n, s = np.asarray(trials), np.asarray(hits)
    if not bool(((s >= 0) & (s <= n)).all()):
        raise ValueError(f"{hits} hits among {trials} trials can't be")
    return n, s


def _log_mean(logs: Array) -> Array:
    """Log of the mean of exp(logs) over the last axis: (..., K) -> (...)."""
    top = logs.max(-1, keepdims=True)
    mean: Array = top[..., 0] + np.log(np.exp(logs - top).mean(-1))
    return mean
