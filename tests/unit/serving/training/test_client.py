"""How long a trainer that died is waited for; Ray's part is scripted."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError

from serving.training import client
from serving.training.client import HeldUpError, TrainerClient
from serving.training.messages import TrainJob

JOB = TrainJob("job-1", ("7",), (), (), subjects={"7": "subject"}, stack=(), files=())


def dying(away: float) -> tuple[TrainerClient, list[float]]:
    """A trainer that dies when it is asked to train and comes back after `away` seconds, and when
    it was asked how far it is."""
    began = time.monotonic()
    asked: list[float] = []

    def train(_: TrainJob) -> None:
        raise RayActorError

    def progress() -> dict[str, str]:
        asked.append(time.monotonic() - began)
        if asked[-1] < away:
            raise RayActorError
        return {}

    methods = {"train": train, "progress": progress}
    actor = {name: SimpleNamespace(remote=method) for name, method in methods.items()}
    return TrainerClient(SimpleNamespace(**actor)), asked


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come at once, and 0.5 s instead of two minutes are waited for."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(client, "RETRY_S", 0.05)
    monkeypatch.setattr(client, "BACK_S", 0.5)


def test_a_trainer_that_died_is_waited_for_before_the_job_is_held_up() -> None:
    trainer, asked = dying(away=0.2)
    with pytest.raises(HeldUpError, match="died") as held_up:
        trainer.train(JOB, cancelled=lambda: False, note=lambda _: None)
    assert held_up.value.stage == "training"
    assert [at >= 0.2 for at in asked] == [False] * (len(asked) - 1) + [True]


def test_a_trainer_that_does_not_come_back_holds_the_job_up_all_the_same() -> None:
    trainer, asked = dying(away=60)
    with pytest.raises(HeldUpError, match="died"):
        trainer.train(JOB, cancelled=lambda: False, note=lambda _: None)
    assert 0.3 < asked[-1] < 0.6
