"""A training in the trainer's process, watched from the forget worker's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from serving.errors import ServingError
from serving.training.messages import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

POLL_S = 0.25
RETRY_S = 0.5
BACK_S = 120.0
"""How long a trainer that died is waited for."""


class HeldUpError(ServingError):
    """A job can't go on now. `stage`: where it failed, if a job that keeps failing there is to be
    given up; None: the cause lies outside the job, and it waits for as long as that takes."""

    def __init__(self, detail: str, *, stage: str | None = None) -> None:
        super().__init__(detail)
        self.stage = stage


class TrainerClient:
    """The trainer actor, typed, and watched while it trains. Can be sent to other actors."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the trainer's handle."""
        self._actor = actor

    def progress(self) -> dict[str, Any]:
        """How far the running training is; empty when none runs."""
        progress: dict[str, Any] = self._ask("progress")
        return progress

    def cancel(self, job: str) -> None:
        """Give `job`'s training up at its next step; nothing happens when another one runs."""
        self._ask("cancel", job)

    def train(
        self,
        task: TrainJob,
        *,
        cancelled: Callable[[], bool],
        note: Callable[[dict[str, Any]], None],
    ) -> Trained | NotTrained:
        """What the training made, or why nothing; `note` is told how far it is. Once `cancelled`,
        the trainer is told to give it up, and what it says of that is returned.

        Raises: HeldUpError (stage "training") when the trainer died, once it is back.
        """
        try:
            return self._watched(task, cancelled, note)
        except RayActorError as error:
            log.warning("the trainer died (%s)", type(error).__name__)
            self._wait_until_back()
            raise HeldUpError("the trainer died while it trained", stage="training") from None

    def _watched(
        self, task: TrainJob, cancelled: Callable[[], bool], note: Callable[[dict[str, Any]], None]
    ) -> Trained | NotTrained:
        running = self._begin(task)
        while True:
            result = self._ended(running, timeout=POLL_S)
            if result is not None:
                return result
            if cancelled():
                # Waited for, so that it can't end the training of whoever is left.
                self.cancel(task.job)
            note(self.progress() or {"phase": "starting"})

    def _wait_until_back(self) -> None:
        """Ray restarts it; until it answers again a call would only fail."""
        deadline = time.monotonic() + BACK_S
        while time.monotonic() < deadline:
            try:
                self.progress()
            except RayActorError:
                time.sleep(RETRY_S)
            else:
                return

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)

    def _begin(self, task: TrainJob) -> Any:
        """The training of `task`, which `_ended` waits for."""
        return self._actor.train.remote(task)

    def _ended(self, running: Any, *, timeout: float) -> Trained | NotTrained | None:
        """What came of a training; None when it is not over within `timeout` seconds."""
        done, _ = ray.wait([running], timeout=timeout)
        result: Trained | NotTrained | None = ray.get(running) if done else None
        return result
