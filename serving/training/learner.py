"""Runs one forget task at a time and reports its progress. Only the trainer's process loads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from forgetting.adapter.low_rank import AnyAdapter, from_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.sources import open_image_set
from forgetting.errors import (
    AdapterError,
    DataError,
    ForgettingError,
    TargetError,
    TrainingError,
)
from forgetting.models.backbone import Backbone
from forgetting.models.golden import golden_figures, golden_image
from forgetting.report.card import dumps
from forgetting.report.gates import GateConfig
from forgetting.task.closed_form import run_closed_form
from forgetting.task.run import TaskResult, run_task
from forgetting.training.config import TrainConfig
from forgetting.training.progress import Progress
from serving.config.backbones import open_backbone
from serving.config.settings import Settings
from serving.errors import ServingError
from serving.training.messages import NotTrained, Trained, TrainJob
from serving.training.uploads import with_uploads

KINDS: tuple[tuple[type[ForgettingError], str], ...] = (
    (DataError, "the images of the data set can't be used as they are"),
    (TargetError, "the backbone's FFNs were not recognised"),
    (TrainingError, "training made no adapter that may be published"),
    (AdapterError, "an adapter of the stack can't be read"),
    (ForgettingError, "the task can't be carried out"),
)


_CANCELLED = NotTrained("the job was cancelled", "the job was cancelled")


class CancelledError(ServingError):
    """An operator cancelled the job, or a newer call to `train` takes its place."""


class Learner:
    """Keeps the backbone and the images loaded between tasks. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._backbone: Backbone = open_backbone(settings)
        self._images = open_image_set(settings.images)
        self._progress: dict[str, Any] = {}
        self._training: str | None = None
        self._cancelled: str | None = None
        self._asked = 0
        self._asking = threading.Lock()
        self._turn = threading.Lock()

    def train(self, job: TrainJob) -> Trained | NotTrained:
        """Learn and measure one adapter.

        A training that still runs ends at its next step. Only one worker calls this, one task at a
        time, so a second call means that control was restarted and no longer waits for the first.
        """
        with self._asking:
            self._asked += 1
            turn = self._asked
        with self._turn:
            if turn != self._asked:
                return _CANCELLED
            return self._train(job, turn)

    def _train(self, job: TrainJob, turn: int) -> Trained | NotTrained:
        chosen = self._settings.forget
        self._training, self._cancelled = job.job, None
        try:
            gates = GateConfig(**chosen.gates)
            stack = [from_files(files, self._backbone) for files in job.files]
            images = with_uploads(self._images, job.uploads)
            run: Callable[..., TaskResult] = (
                run_closed_form
                if job.closed_form
                else partial(
                    run_task,
                    config=TrainConfig(**chosen.train),
                    progress=partial(self._note, turn),
                )
            )
            result = run(
                self._backbone,
                stack,
                images=images,
                forget=job.forget,
                earlier=job.earlier,
                withheld=job.withheld,
                subjects=job.subjects,
                stack_ids=job.stack,
                gates=per_class(gates) if job.together else gates,
                seed=chosen.seed + job.attempt,
            )
            golden = self._golden(stack, result.files)
            refused = "; ".join(gate.sentence for gate in result.gates if not gate.passed)
            return Trained(
                files=dict(result.files),
                report=dumps(result.report, result.gates, golden=golden).encode(),
                refused=refused or None,
                seconds=result.report.seconds,
            )
        except CancelledError:
            return _CANCELLED
        except Exception as error:
            return NotTrained(kind_of(error), f"{type(error).__name__}: {error}")
        finally:
            self._progress, self._training = {}, None

    def _golden(self, stack: list[AnyAdapter], files: Mapping[str, bytes]) -> tuple[float, ...]:
        """The golden figures of the stack with this adapter on top. A replica that builds that
        stack compares its own with them."""
        model = adapted_model(self._backbone, [*stack, from_files(files, self._backbone)])
        with torch.no_grad():
            return golden_figures(model(golden_image(self._backbone.spec.preprocess.input_size)))

    def progress(self) -> dict[str, Any]:
        """How far the running training is; empty when none runs."""
        return dict(self._progress)

    def cancel(self, job: str) -> None:
        """End the training of `job` at its next step. Does nothing if that one isn't running."""
        if self._training == job:
            self._cancelled = job

    def _note(self, turn: int, progress: Progress) -> None:
        if turn != self._asked:
            raise CancelledError
        if self._cancelled is not None and self._cancelled == self._training:
            self._cancelled = None
            raise CancelledError
        self._progress = asdict(progress)


def per_class(gates: GateConfig) -> GateConfig:
    """The gates for a task of several jobs: the limit on the mean `acc_f` also holds for the worst
    class, so that each class passes what it would have to pass alone."""
    return replace(gates, worst_class=min(gates.worst_class, gates.acc_f))


def kind_of(error: Exception) -> str:
    """A sentence for the ledger. It doesn't quote the error, whose words may name a class."""
    for cls, words in KINDS:
        if isinstance(error, cls):
            return f"{words}; `lethe status` has the details for as long as the server runs"
    return f"training failed unexpectedly ({type(error).__name__})"
