"""The control actor: carries out operators' commands and answers their questions.

    forget:    requested (durable) -> guard release acknowledged -> answered; the worker trains
    rollback:  prepared, activated (durable), acknowledged -> answered
    restore:   restored (durable) -> release that shows the class acknowledged -> answered
    cancel:    refused (durable) -> answered; a running training ends
    retry:     retried (durable) -> answered; the worker trains
    suspend:   suspended (durable) -> every replica silent -> answered

All its state is in the ledger, so it may be killed at any moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from registry.errors import ConflictError, FormatError
from registry.publish.declarations import restore_subjects, write_note
from registry.publish.jobs import refuse_job, request_forget, retry_job
from registry.subjects.personal import keep_image
from registry.subjects.subject_map import SubjectMap
from serving.config.home import home_of, signer, wait_for_ledger, wait_for_private_store
from serving.config.settings import Settings
from serving.control.forget_worker import ForgetWorker
from serving.control.job_views import named, names_of
from serving.control.messages import (
    Answer,
    ForgetRequest,
    Images,
    Rejection,
    RestoreRequest,
    RetryRequest,
    RollbackRequest,
)
from serving.control.preconditions import (
    why_no_rollback,
    why_not_again,
    why_not_cancelled,
    why_not_forgotten,
    why_not_restored,
    why_not_retried,
    why_not_with,
)
from serving.control.status import StatusPage, ack_view
from serving.coordination.activation import Activation, rollback_of
from serving.coordination.client import CoordinatorClient
from serving.coordination.jobs import CANCELLED, is_cancelled, pending_jobs, trial_of
from serving.coordination.messages import Author, Declined
from serving.monitoring.client import MonitorClient
from serving.monitoring.messages import ControlFigures
from serving.monitoring.metrics import Metrics
from serving.monitoring.ray_export import RayMirror
from serving.monitoring.trial_verdict import TrialTerms
from serving.training.client import TrainerClient

P = ParamSpec("P")
T = TypeVar("T")

ACTOR = "lethe-control"


class Control:
    """Runs as a threaded Ray actor; the public methods are called remotely."""

    def __init__(
        self,
        settings: Settings,
        *,
        coordinator: CoordinatorClient,
        trainer: TrainerClient,
        monitor: MonitorClient,
        backbone: str,
        classes: tuple[str, ...],
    ) -> None:
        """`backbone` is its fingerprint; `classes` are its class names in the head's order."""
        self._settings = settings
        self._backbone = backbone
        self._classes = classes
        home = home_of(settings)
        self._ledger = wait_for_ledger(home)
        self._private = wait_for_private_store(home)
        self._subjects = SubjectMap(self._private)
        self._operator = signer(home, "operator")
        self._publisher = signer(home, "publisher")
        self._accepting = threading.Lock()
        self._activation = Activation(coordinator, self._ledger)
        exported = settings.monitor.ray_metrics
        self._worker = ForgetWorker(
            self._ledger,
            self._publisher,
            private=self._private,
            activation=self._activation,
            trainer=trainer,
            monitor=monitor,
            attempts=settings.forget.attempts,
            terms=TrialTerms(
                settings.canary.samples, settings.canary.seconds, settings.canary.evidence
            ),
            closed_form=settings.forget.closed_form,
            company_s=settings.forget.batch_wait_s,
            accepting=self._accepting,
            metrics=Metrics("trainer", RayMirror("trainer") if exported else None),
        )
        self._status = StatusPage(
            self._ledger,
            self._worker,
            self._activation,
            class_of=self._subjects.class_of,
            backbone=backbone,
            classes=len(classes),
        )

    # -- commands

    def forget(self, request: ForgetRequest, author: Author) -> Answer:
        """Accept a forget command. When this returns a view, the command is durable and the classes
        are masked on every replica."""
        classes = request.classes
        with self._accepting:
            state = self._ledger.refresh()
            known = state.requests.get(author.request_id)
            if known is None:
                rejection = why_not_forgotten(
                    classes, state, known=self._classes, class_of=self._subjects.class_of
                ) or why_not_with(request.images, classes)
            else:
                rejection = why_not_again(
                    classes, state.jobs[known], class_of=self._subjects.class_of
                )
            if rejection is not None:
                return rejection
            subjects = {name: self._subjects.assign(name) for name in classes}
            if known is None:
                self._keep(request.images, subjects)
            job = _recorded(
                request_forget,
                self._ledger,
                self._operator,
                subjects=list(subjects.values()),
                backbone=self._backbone,
                actor=author.actor,
                reason=author.reason,
                request_id=author.request_id,
                canary=request.canary,
                batch=request.batch,
            )
        if isinstance(job, Rejection):
            return job
        self._worker.wake()
        outcome = self._activation.guard(job)
        if isinstance(outcome, Declined):
            return Rejection(
                503,
                f"{job.id} is accepted and durable, but not masked everywhere yet: "
                f"{outcome.detail}.",
                "The server keeps trying; `lethe status` shows when it has succeeded.",
            )
        view = self.job(job.id)
        if isinstance(view, dict):
            view["guard"] = ack_view(outcome)
        return view

    def rollback(self, request: RollbackRequest, author: Author) -> Answer:
        """Serve an earlier release's adapters again as a new release; every guard stays."""
        to = request.to
        state = self._ledger.refresh()
        made = rollback_of(state, author.request_id)
        if made is None:
            rejection = why_no_rollback(to, state)
        else:
            before = state.releases[made].to
            rejection = (
                Rejection(409, f"This Idempotency-Key has rolled back to release {before}.")
                if before != to
                else None
            )
        if rejection is not None:
            return rejection
        outcome = self._activation.roll_back(to, author, instead_of=request.instead_of)
        if isinstance(outcome, Declined):
            status = 409 if outcome.stage in ("stack", "suspended") else 503
            return Rejection(status, f"The rollback was not made: {outcome.detail}.")
        now = self._ledger.refresh()
        masked = names_of(now.erasing, self._subjects.class_of)
        return {**ack_view(outcome), "rolled_back_to": to, "still_masked": masked}

    def restore(self, request: RestoreRequest, author: Author) -> Answer:
        """End an erasure, and serve the class again."""
        with self._accepting:
            state = self._ledger.refresh()
            subject = request.subject or self._subjects.find(request.class_name or "")
            rejection = why_not_restored(subject, author.request_id, self._ledger)
            if rejection is not None or subject is None:
                return rejection or Rejection(404, "There is no such subject.")
            pending = {job.id for job in pending_jobs(state)}
            if subject in state.erasing:
                ended = _recorded(
                    restore_subjects,
                    self._ledger,
                    self._operator,
                    subjects=[subject],
                    actor=author.actor,
                    reason=author.reason,
                    request_id=author.request_id,
                )
                if isinstance(ended, Rejection):
                    return ended
                for job in ended.jobs.values():
                    if job.state == "restored" and subject in job.subjects:
                        self._worker.cancel(job.id)
        outcome = self._activation.bring_back(author)
        self._worker.wake()
        if isinstance(outcome, Declined):
            return Rejection(
                503,
                "The erasure is ended and recorded, but the class is not served again yet: "
                f"{outcome.detail}.",
                "The server keeps trying; `lethe status` shows when it has succeeded.",
            )
        now = self._ledger.refresh()
        again = {s for job in pending_jobs(now) if job.id not in pending for s in job.erasing}
        return {
            **ack_view(outcome),
            "subject": subject,
            "class": named(subject, self._subjects.class_of),
            "trained_again": names_of(again, self._subjects.class_of),
            "still_masked": names_of(now.erasing, self._subjects.class_of),
        }

    def cancel(self, job_id: str, author: Author) -> Answer:
        """Stop training a job. Its classes stay under erasure and masked."""
        with self._accepting:
            state = self._ledger.refresh()
            rejection = why_not_cancelled(job_id, state)
            if rejection is not None:
                return rejection
            trial = trial_of(state, job_id)
            if trial is not None:
                problem = self._activation.end_trial(trial.release, "the job was cancelled", author)
                if problem is not None:
                    return Rejection(503, f"The trial goes on: {problem.detail}.", "Send it again.")
            if not is_cancelled(state.jobs[job_id]):
                refused = _recorded(
                    refuse_job,
                    self._ledger,
                    self._publisher,
                    job=job_id,
                    stage=CANCELLED,
                    detail=author.reason,
                    report=None,
                    actor=author.actor,
                    reason=author.reason,
                    request_id=author.request_id,
                    # Checked again when the record is added: meanwhile the coordinator may have
                    # served the job's adapter.
                    still=lambda newest: why_not_cancelled(job_id, newest) is None,
                )
                if isinstance(refused, Rejection):
                    return why_not_cancelled(job_id, self._ledger.refresh()) or refused
        self._worker.cancel(job_id)
        return self.job(job_id)

    def retry(self, request: RetryRequest, author: Author) -> Answer:
        """Have a refused or cancelled job trained again."""
        job_id = request.job
        with self._accepting:
            state = self._ledger.refresh()
            rejection = why_not_retried(job_id, state, request_id=author.request_id)
            if rejection is not None:
                return rejection
            job = state.jobs[job_id]
            subjects = {named(s, self._subjects.class_of): s for s in job.erasing}
            rejection = why_not_with(request.images, list(subjects))
            if rejection is not None:
                return rejection
            if author.request_id not in job.retries:
                self._keep(request.images, subjects)
                # Before the record, after which the worker may start the job at any moment.
                self._worker.forgive(job_id)
            retried = _recorded(
                retry_job,
                self._ledger,
                self._operator,
                job=job_id,
                actor=author.actor,
                reason=author.reason,
                request_id=author.request_id,
            )
        if isinstance(retried, Rejection):
            return retried
        self._worker.wake()
        return self.job(job_id)

    def suspend(self, author: Author) -> Answer:
        """Stop all predictions on every replica until `resume`."""
        halt = self._activation.suspend(author)
        if isinstance(halt, Declined):
            return Rejection(
                409 if halt.stage == "resumed" else 503,
                f"Replicas may still answer: {halt.detail}.",
                "Send it again; `lethe status` shows whether serving is suspended.",
            )
        return {
            "suspended": True,
            "acknowledged_at": halt.at,
            "ms": halt.ms,
            "replicas": halt.members,
        }

    def resume(self, author: Author) -> Answer:
        """Let replicas answer again."""
        resumption = self._activation.resume(author)
        if isinstance(resumption, Declined):
            return Rejection(
                503, f"Serving was not resumed: {resumption.detail}.", "Send it again."
            )
        self._worker.go_on()
        return {
            "suspended": False,
            "resumed_at": resumption.at,
            "replicas": resumption.members,
        }

    def remark(self, text: str, author: Author) -> None:
        """Write a remark into the ledger."""
        write_note(
            self._ledger,
            self._operator,
            text=text,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    # -- questions

    def settings(self) -> Settings:
        """The settings that this process was started with."""
        return self._settings

    def job(self, job_id: str) -> Answer:
        return self._status.job(job_id)

    def releases(self) -> list[dict[str, Any]]:
        return self._status.releases()

    def status(self) -> dict[str, Any]:
        """What is active, what is forgotten, and which release each replica runs."""
        return self._status.status()

    def report(self, job_id: str) -> bytes | Rejection:
        """The measured report of a job, as JSON bytes."""
        return self._status.report(job_id)

    def figures(self) -> ControlFigures:
        """Numbers about commands, jobs and trainings for the metrics page."""
        return self._status.figures()

    def _keep(self, images: Images, subjects: Mapping[str, str]) -> None:
        """Store images, by class, under the subjects of their classes."""
        for name, several in images.items():
            for data in several:
                keep_image(self._private, subjects[name], data)


def _recorded(act: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | Rejection:
    """Call a function of `registry.publish`; a `Rejection` if the ledger refuses the record."""
    try:
        return act(*arguments, **keywords)
    except ConflictError as error:
        return Rejection(409, str(error))
    except FormatError as error:
        return Rejection(422, str(error))
