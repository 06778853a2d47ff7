"""Control's answers about jobs and releases, from the ledger, the worker and the coordinator."""

from __future__ import annotations

import time
from typing import Any

from registry.fold.state import State
from registry.log.ledger import Ledger
from serving.control.forget_worker import ForgetWorker
from serving.control.job_views import (
    ClassOf,
    control_figures,
    job_view,
    names_of,
    releases_view,
    report_of,
)
from serving.control.messages import Answer, Rejection
from serving.coordination.activation import Activation
from serving.coordination.jobs import pending_jobs
from serving.coordination.messages import Ack
from serving.monitoring.messages import ControlFigures

RECENT = 20
"""How many of the ended jobs the status shows."""


class StatusPage:
    """Builds the answers. Changes nothing."""

    def __init__(
        self,
        ledger: Ledger,
        worker: ForgetWorker,
        activation: Activation,
        *,
        class_of: ClassOf,
        backbone: str,
        classes: int,
    ) -> None:
        """`backbone` is its fingerprint, `classes` the number of classes that it knows."""
        self._ledger = ledger
        self._worker = worker
        self._activation = activation
        self._class_of = class_of
        self._backbone = backbone
        self._classes = classes

    def job(self, job_id: str) -> Answer:
        state = self._ledger.refresh()
        if job_id not in state.jobs:
            return Rejection(404, f"There is no job {job_id}.", "`lethe status` lists the jobs.")
        return self._view(job_id, state, [job.id for job in pending_jobs(state)])

    def releases(self) -> list[dict[str, Any]]:
        return releases_view(self._ledger.refresh(), class_of=self._class_of)

    def status(self) -> dict[str, Any]:
        """What is active, what is forgotten, and which release each replica runs."""
        state = self._ledger.refresh()
        erased = state.subjects_erased_by_weights(state.active)
        forgotten = state.subjects_forgotten(state.active)
        return {
            "release": state.active,
            "suspended": state.suspended,
            "canary": None
            if state.trial is None
            else {"release": state.trial.release, "percent": state.trial.percent},
            "acknowledged": state.confirmed >= state.active,
            "backbone": self._backbone,
            "classes": self._classes,
            "under_erasure": names_of(state.erasing, self._class_of),
            "forgotten_by_weights": names_of(forgotten, self._class_of),
            "edited_only": names_of(erased - forgotten, self._class_of),
            "masked_only": names_of(state.erasing - erased, self._class_of),
            "registry_seq": state.seq,
            "replicas": self._activation.members(),
            "jobs": self._recent_jobs(state),
        }

    def _recent_jobs(self, state: State) -> list[dict[str, Any]]:
        waiting = [job.id for job in pending_jobs(state)]
        ended = [job_id for job_id in state.jobs if job_id not in waiting]
        return [self._view(job_id, state, waiting) for job_id in [*ended[-RECENT:], *waiting]]

    def _view(self, job_id: str, state: State, waiting: list[str]) -> dict[str, Any]:
        return job_view(
            state.jobs[job_id],
            state,
            class_of=self._class_of,
            progress=self._worker.training.get(job_id, {}),
            problem=self._worker.problems.get(job_id),
            ahead=waiting.index(job_id) if job_id in waiting else 0,
        )

    def report(self, job_id: str) -> bytes | Rejection:
        """The measured report of a job, as JSON bytes."""
        state = self._ledger.refresh()
        digest = report_of(state.jobs[job_id], state) if job_id in state.jobs else None
        if digest is None:
            return Rejection(404, f"There is no report of job {job_id} (yet).")
        return self._ledger.get_blob(digest)

    def figures(self) -> ControlFigures:
        """Numbers about commands, jobs and trainings for the metrics page."""
        families = self._worker.metrics.families()
        return control_figures(self._ledger.refresh(), read_at=time.time(), families=families)


def ack_view(ack: Ack) -> dict[str, Any]:
    return {
        "release": ack.release,
        "acknowledged_at": ack.at,
        "swap_ms": ack.ms,
        "replicas": ack.members,
    }
