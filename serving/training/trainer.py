"""The trainer actor: trains one adapter at a time, in its own process, at a lower priority.

A process that holds an actor's handle imports the actor's module. So this module doesn't import
torch: `serving.training.learner` does, and only the trainer's process imports that.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from serving.config.settings import Settings
from serving.training.messages import NotTrained, Trained, TrainJob

ACTOR = "lethe-trainer"
NICENESS = 10
"""Added to the process's `nice` value: the replicas get the CPU first."""


class Trainer:
    """Runs as a threaded Ray actor: `progress` is answered while `train` runs."""

    def __init__(self, settings: Settings) -> None:
        os.nice(NICENESS)
        self._settings = settings
        self._learner: Any = None
        # Ray doesn't restart an actor whose constructor raises, so errors wait for `train`, which
        # loads again and reports them.
        with contextlib.suppress(Exception):
            self._learner = self._load()

    def train(self, job: TrainJob) -> Trained | NotTrained:
        """Learn and measure one adapter."""
        try:
            self._learner = self._learner or self._load()
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            return NotTrained("the trainer can't load the backbone or the images", words)
        result: Trained | NotTrained = self._learner.train(job)
        return result

    def progress(self) -> dict[str, Any]:
        """How far the running training is; empty when none runs."""
        return self._learner.progress() if self._learner else {}

    def cancel(self, job: str) -> None:
        """End the training of `job` at its next step. Does nothing if that one isn't running."""
        if self._learner:
            self._learner.cancel(job)

    def _load(self) -> Any:
        from serving.training.learner import Learner

        return Learner(self._settings)
