"""Measures how soon a leak is found: `python benchmarks/leak_detection.py [target ...]`.

Simulates streams of matches that leak at a fixed rate and prints, for each target rate, the median
and the 95th percentile of the number of matches until the evidence reaches 3, where
ForgottenClassRecognised fires. It also prints the number of matches until the detector reaches 5
(LeakSuspected), after 10,000 quiet matches that leaked at a quarter of the target. The seed is
fixed. Needs no Ray and no torch.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from serving.monitoring.evidence import detect, log10_detection, log10_evidence, quiet
from serving.monitoring.thresholds import PROOF, SUSPICION

RATES = (0.02, 0.03, 0.05, 0.10, 0.30, 1.0)
RUNS = 1000
LONGEST = 30_000
QUIET = 10_000


def until_proof(rate: float, target: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Matches until the evidence reaches PROOF, (RUNS,); inf if LONGEST were not enough."""
    leaks = int(LONGEST * rate + 5 * np.sqrt(LONGEST * rate)) + 5
    # The evidence rises only at a leak, so it is computed only there.
    at = np.cumsum(rng.geometric(rate, size=(RUNS, leaks)), axis=1)  # (RUNS, leaks)
    hits = np.broadcast_to(np.arange(1, leaks + 1), at.shape)
    proven = (log10_evidence(at, hits, target=target) >= PROOF) & (at <= LONGEST)
    first = at[np.arange(RUNS), proven.argmax(axis=1)].astype(float)
    return np.where(proven.any(axis=1), first, np.inf)


def until_suspicion(rate: float, target: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Matches until the detector reaches SUSPICION, (RUNS,), counted from the change.

    Matches come one at a time.
    """
    state = np.tile(quiet(target), (RUNS, 1))
    one = np.ones(RUNS, dtype=np.int64)
    for _ in range(QUIET // 10):  # the quiet time, in tens
        hits = rng.binomial(10, target / 4, RUNS)
        state = detect(state, one * 10, hits, target=target)
    found = np.full(RUNS, np.inf)
    for step in range(1, LONGEST + 1):
        state = detect(state, one, rng.binomial(1, rate, RUNS), target=target)
        found = np.where(np.isinf(found) & (log10_detection(state) >= SUSPICION), step, found)
        if not np.isinf(found).any():
            break
    return found


def shown(matches: NDArray[np.float64]) -> str:
    """Median / 95th percentile; a dash if too few runs ended."""
    both = np.quantile(matches, (0.5, 0.95), method="higher")
    return " / ".join(f"{value:,.0f}" if np.isfinite(value) else "—" for value in both)


def main(targets: list[float]) -> None:
    for target in targets:
        rng = np.random.default_rng(1)
        print(f"\ntarget {target:.1%}, {RUNS:,} runs of at most {LONGEST:,} matches")
        print("| leak rate | matches to proof | matches to suspicion, after a quiet time |")
        print("|---|---|---|")
        for rate in RATES:
            if rate > target:
                proof = shown(until_proof(rate, target, rng))
                print(f"| {rate:.0%} | {proof} | {shown(until_suspicion(rate, target, rng))} |")


if __name__ == "__main__":
    main([float(argument) for argument in sys.argv[1:]] or [0.01, 0.02])
