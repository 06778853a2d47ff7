"""The trainer actor: learns one adapter at a time, far from the replicas and after them in line.

Whoever holds an actor's handle imports the actor's module, so this one leaves torch to
`serving.training.learner`, which only the actor's own process imports.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from serving.config.settings import Settings
from serving.training.messages import NotTrained, Trained, TrainJob

ACTOR = "lethe-trainer"
NICENESS = 10
"""The trainer gets what the replicas leave."""


class Trainer:
    """Runs as a threaded Ray actor: `progress` is answered while `train` runs."""

    def __init__(self, settings: Settings) -> None:
        os.nice(NICENESS)
        self._settings = settings
        self._learner: Any = None
        # Ray gives an actor up for good whose constructor raises; `train` tries again.
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
        """Give `job`'s training up at its next step; nothing happens when another one runs."""
        if self._learner:
            self._learner.cancel(job)

    def _load(self) -> Any:
        from serving.training.learner import Learner

        return Learner(self._settings)
