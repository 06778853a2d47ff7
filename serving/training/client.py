"""Typed client of the trainer actor, with which control's forget worker runs a training."""

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
"""Seconds to wait until a trainer that died is back."""


class HeldUpError(ServingError):
    """A job can't go on now.

    `stage`: where it failed; a job that keeps failing there is given up. None: the cause lies
    outside the job, so the job waits for as long as it takes.
    """

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
        """End the training of `job` at its next step. Does nothing if that one isn't running."""
        self._ask("cancel", job)

    def train(
        self,
        task: TrainJob,
        *,
        cancelled: Callable[[], bool],
        note: Callable[[dict[str, Any]], None],
    ) -> Trained | NotTrained:
        """Train, and return what came out. `note` is called with the progress.

        When `cancelled` returns True, the trainer is told to end the training; its answer is
        returned.

        Raises: HeldUpError (stage "training") when the trainer died; first waits until it is back.
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
                # Blocks until the trainer has it: arriving late, it could end a later training.
                self.cancel(task.job)
            note(self.progress() or {"phase": "starting"})

    def _wait_until_back(self) -> None:
        """Wait until Ray has restarted the trainer and it answers, for `BACK_S` at most."""
        asking = Retrying(
            retry=retry_if_exception_type(RayActorError),
            wait=wait_fixed(RETRY_S),
            stop=stop_before_delay(BACK_S),
            retry_error_callback=lambda _: None,  # the next training finds out
        )
        asking(self.progress)

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
