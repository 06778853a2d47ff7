"""The e-process: sure when it leaks, and never sure by luck more often than it promises."""

from __future__ import annotations

import numpy as np
import pytest

from serving.evidence import leak_evidence


def test_no_samples_are_no_evidence() -> None:
    assert leak_evidence(0, 0, target=0.02) == pytest.approx(0.0)


def test_a_lost_adapter_is_proven_within_four_matches() -> None:
    assert leak_evidence(4, 4, target=0.02) >= 3


def test_quiet_traffic_speaks_against_a_leak() -> None:
    assert leak_evidence(500, 0, target=0.02) < -1


def test_evidence_grows_with_leaks_and_falls_with_silence() -> None:
    assert leak_evidence(100, 10, target=0.02) > leak_evidence(100, 5, target=0.02)
    assert leak_evidence(200, 5, target=0.02) < leak_evidence(100, 5, target=0.02)


def test_false_alarms_ever_stay_below_what_ville_promises() -> None:
    """1,000 streams of 5,000 matches at exactly the target rate, looked at after every one."""
    rng = np.random.default_rng(7)
    threshold = 2.0
    alarms = 0
    for _ in range(1000):
        leaks = np.cumsum(rng.random(5000) < 0.02)
        # The evidence can only rise at a leak, so looking there is looking everywhere.
        at = np.flatnonzero(np.diff(leaks, prepend=0))
        alarms += any(
            leak_evidence(int(n) + 1, int(leaks[n]), target=0.02) >= threshold for n in at
        )
    assert alarms <= 10 + 3 * np.sqrt(10)


@pytest.mark.parametrize(("matches", "leaks", "target"), [(1, 2, 0.1), (5, -1, 0.1), (1, 1, 1.5)])
def test_impossible_counts_are_refused(matches: int, leaks: int, target: float) -> None:
    with pytest.raises(ValueError, match="can't be|between"):
        leak_evidence(matches, leaks, target=target)
