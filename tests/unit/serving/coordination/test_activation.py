"""How long control waits for a coordinator that is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from serving.config.home import Home, open_ledger, prepare_home
from serving.coordination import activation
from serving.coordination.activation import Activation
from serving.coordination.messages import Declined


@pytest.fixture
def to_the_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Activation:
    """An `Activation` that waits 0.2 s instead of a minute."""
    monkeypatch.setattr(activation, "BACK_S", 0.2)
    monkeypatch.setattr(activation, "RETRY_S", 0.02)
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    return Activation(None, open_ledger(home))


def test_a_coordinator_that_died_after_long_work_is_waited_for_too(
    to_the_coordinator: Activation,
) -> None:
    asked: list[float] = []

    def ask() -> str:
        asked.append(time.monotonic())
        if len(asked) == 1:
            time.sleep(0.3)
            raise RayActorError()
        return "an answer"

    assert to_the_coordinator._patiently(ask) == "an answer"


def test_a_coordinator_that_does_not_come_back_is_given_up(to_the_coordinator: Activation) -> None:
    def ask() -> str:
        raise RayActorError()

    started = time.monotonic()
    outcome = to_the_coordinator._patiently(ask)
    assert isinstance(outcome, Declined)
    assert outcome.stage == "coordinator"
    assert time.monotonic() - started >= 0.2
