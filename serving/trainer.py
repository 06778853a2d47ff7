"""The trainer actor: learns one adapter at a time, far from the replicas and after them in line.

Two calls run side by side in it: `train`, and `progress` that tells how far it is.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import torch

from forgetting.adapter import from_files
from forgetting.backbone import Backbone
from forgetting.data import open_image_set
from forgetting.errors import ForgettingError
from forgetting.report import GateConfig, dumps
from forgetting.task import run_task
from forgetting.train import Progress, TrainConfig
from serving.backbones import open_backbone
from serving.settings import Settings
from serving.training import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

NICENESS = 10
"""The trainer gets what the replicas leave."""


class Trainer:
    """Runs as a threaded Ray actor (two at once)."""

    def __init__(self, settings: Settings) -> None:
        os.nice(NICENESS)
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._backbone: Backbone = open_backbone(settings)
        self._images = open_image_set(settings.images)
        self._progress: dict[str, Any] = {}

    def train(self, job: TrainJob) -> Trained | NotTrained:
        """Learn and measure one adapter."""
        chosen = self._settings.forget
        try:
            stack = [from_files(files, self._backbone) for files in job.files]
            result = run_task(
                self._backbone,
                stack,
                images=self._images,
                forget=job.forget,
                earlier=job.earlier,
                subjects=job.subjects,
                stack_ids=job.stack,
                config=TrainConfig(**chosen.train),
                gates=GateConfig(**chosen.gates),
                seed=chosen.seed,
                progress=self._note,
            )
        except (ForgettingError, TypeError) as error:
            return NotTrained(str(error))
        finally:
            self._progress = {}
        failed = [gate for gate in result.gates if not gate.passed]
        refused = "; ".join(
            f"{gate.name} is {gate.value:.4f}, limit {gate.limit:.4f}: {gate.advice}"
            for gate in failed
        )
        return Trained(
            files=dict(result.files),
            report=dumps(result.report, result.gates).encode(),
            refused=refused or None,
            seconds=result.report.seconds,
        )

    def progress(self) -> dict[str, Any]:
        """How far the running training is; empty when none runs."""
        return dict(self._progress)

    def _note(self, progress: Progress) -> None:
        self._progress = asdict(progress)
