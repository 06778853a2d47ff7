"""How the client waits for a trainer that died."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.training import client
from serving.training.client import HeldUpError
from serving.training.messages import TrainJob
from serving.training.trainer import Trainer
from tests.unit.serving.in_process import LocalTrainer, Process
from tests.unit.serving.small_server import settings_for, until

JOB = TrainJob("job-1", ("zoe",), (), (), subjects={"zoe": "subject"}, stack=(), files=())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits 0.5 s instead of two minutes."""
    monkeypatch.setattr(client, "RETRY_S", 0.05)
    monkeypatch.setattr(client, "BACK_S", 0.5)


@pytest.fixture
def trainer(tiny: Path, tmp_path: Path) -> Process[Trainer]:
    """A trainer whose trainings last until they are ended."""
    long = {"train": {"select_steps": 100_000}}
    return Process(lambda: Trainer(settings_for(tiny, tmp_path, forget=long)))


def held_up_while(trainer: Process[Trainer], act: Callable[[], None]) -> float:
    """Do `act` while a job is trained. Returns how many seconds later the job is held up."""
    began: list[float] = []

    def disturb() -> None:
        until(lambda: trainer.actor.progress() != {})
        began.append(time.monotonic())
        act()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    with pytest.raises(HeldUpError, match="died") as held_up:
        LocalTrainer(trainer.handle).train(JOB, cancelled=lambda: False, note=lambda _: None)
    held = time.monotonic()
    disturbing.join()
    assert held_up.value.stage == "training"
    return held - began[0]


def test_a_trainer_that_died_is_waited_for_before_the_job_is_held_up(
    trainer: Process[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACK_S", 60.0)

    def restart() -> None:
        trainer.kill()
        time.sleep(0.3)
        trainer.start()

    assert 0.3 <= held_up_while(trainer, restart) < 30
    assert trainer.alive
    trainer.kill()


def test_a_trainer_that_does_not_come_back_holds_the_job_up_all_the_same(
    trainer: Process[Trainer],
) -> None:
    assert held_up_while(trainer, trainer.kill) >= 0.3
