"""How sure live traffic makes us that a forgotten class is still recognised.

Each shadow match is one Bernoulli trial of "the adapted weights still name the class". Against
H0: P(leak | past) <= p0 stands the e-process

    E_n = mean_k (p_k / p0)^S ((1 - p_k) / (1 - p0))^(n - S),     p_k = p0 * RATIOS_k

with S leaks among n matches: a non-negative supermartingale under H0, so by Ville's inequality
P(E_n >= 1/a at any n) <= a. One may look at it after every request. It depends on the counts
alone, so replicas' counts are simply added.
"""

from __future__ import annotations

import math

RATIOS = (1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
_LARGEST = 0.99
"""Alternatives are kept below certainty, where a single non-leak would end them for good."""


def leak_evidence(matches: int, leaks: int, *, target: float) -> float:
    """log10 of E_n; 2 is proof at 0.01, 3 at 0.001. Minus infinity never occurs.

    Raises ValueError unless 0 <= leaks <= matches and 0 < target < 1.
    """
    if not 0 <= leaks <= matches:
        raise ValueError(f"{leaks} leaks among {matches} matches can't be")
    if not 0 < target < 1:
        raise ValueError(f"target leak rate {target} is not between 0 and 1")
    alternatives = {min(target * ratio, _LARGEST) for ratio in RATIOS}
    logs = [
        leaks * math.log(p / target) + (matches - leaks) * math.log((1 - p) / (1 - target))
        for p in alternatives
        if p > target
    ]
    if not logs:
        return 0.0
    top = max(logs)
    mean = sum(math.exp(value - top) for value in logs) / len(logs)
    return (top + math.log(mean)) / math.log(10)
