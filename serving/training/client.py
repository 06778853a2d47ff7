"""A training in the trainer's process, watched from the forget worker's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_fixed

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
        progress: dict[str, Any] = ray.get(self._actor.progress.remote())
        return progress

    def cancel(self, job: str) -> None:
        """Give `job`'s training up at its next step; nothing happens when another one runs."""
        ray.get(self._actor.cancel.remote(job))

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
        running = self._actor.train.remote(task)
        while True:
            done, _ = ray.wait([running], timeout=POLL_S)
            if done:
                result: Trained | NotTrained = ray.get(running)
                return result
            if cancelled():
                # Waited for, so that it can't end the training of whoever is left.
                self.cancel(task.job)
            note(self.progress() or {"phase": "starting"})

    def _wait_until_back(self) -> None:
        """Ray restarts it; until it answers again a call would only fail."""
        asking = Retrying(
            retry=retry_if_exception_type(RayActorError),
            wait=wait_fixed(RETRY_S),
            stop=stop_before_delay(BACK_S),
            retry_error_callback=lambda _: None,  # whoever asks next finds out
        )
        asking(self.progress)
