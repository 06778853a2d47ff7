"""How the forget worker goes on after failures."""

from __future__ import annotations

import pytest

from serving.control.forget_worker import LONGEST_RETRY_S, RETRY_S, retry_after


@pytest.mark.parametrize("rounds", [10, 1023, 1024, 1025, 10**6])
def test_the_worker_waits_and_tries_again_however_often_it_failed(rounds: int) -> None:
    assert retry_after(rounds) == LONGEST_RETRY_S


def test_the_first_tries_come_sooner() -> None:
    waits = [retry_after(rounds) for rounds in range(1, 11)]
    assert waits[0] == 2 * RETRY_S
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
