"""The trainer actor: learns one adapter at a time, far from the replicas and after them in line.

Whoever holds an actor's handle imports the actor's module, so this one leaves torch to
`serving.learning`, which only the actor's own process imports.
"""

from __future__ import annotations

import os
from typing import Any

from serving.settings import Settings
from serving.training import NotTrained, Trained, TrainJob

ACTOR = "lethe-trainer"
NICENESS = 10
"""The trainer gets what the replicas leave."""


class Trainer:
    """Runs as a threaded Ray actor: `progress` is answered while `train` runs."""

    def __init__(self, settings: Settings) -> None:
        from serving.learning import Learner

        os.nice(NICENESS)
        self._learner = Learner(settings)

    def train(self, job: TrainJob) -> Trained | NotTrained:
        """Learn and measure one adapter."""
        return self._learner.train(job)

    def progress(self) -> dict[str, Any]:
        """How far the running training is; empty when none runs."""
        return self._learner.progress()
