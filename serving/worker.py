"""The forget worker: takes the oldest job that is not at its end as far as it goes.

It looks up in the ledger what is left of the job, so a crash anywhere costs at most the training
that was under way:

    guarded -> train -> trained (durable) -> gates -> adapter release acknowledged, or refused
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayActorError

from registry import publish
from registry.adapters import adapter_files
from registry.errors import ConflictError, FormatError, RegistryError
from registry.keys import Signer
from registry.ledger import Ledger
from registry.personal import images_of
from registry.state import Job
from registry.store import Store
from registry.subjects import SubjectMap
from serving.acknowledgement import Author, Refusal
from serving.activation import Activation
from serving.jobs import pending_jobs
from serving.metrics import Metrics
from serving.train_job import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

ACTOR = "lethe-worker"
POLL_S = 0.25
IDLE_S = 5.0
RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
LONGEST_DETAIL = 1500
TRAINER_BACK_S = 120.0
TRAININGS = ("accepted", "refused", "failed")


class ForgetWorker:
    """One thread that trains and publishes, job after job."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Signer,
        *,
        private: Store,
        activation: Activation,
        trainer: Any,
        attempts: int,
        accepting: threading.Lock,
        metrics: Metrics,
    ) -> None:
        """`private` holds the subject map and uploaded images; `trainer` is an actor handle. A job
        is given up after `attempts` failed trainings. `accepting` is held while a command changes
        who is under erasure. `metrics` are the trainer's."""
        self._ledger = ledger
        self._publisher = publisher
        self._private = private
        self._subjects = SubjectMap(private)
        self._activation = activation
        self._trainer = trainer
        self._attempts = attempts
        self._accepting = accepting
        self._work = threading.Event()
        self.metrics = metrics
        for outcome in TRAININGS:
            # From 0 on, so that Prometheus sees the first as an increase.
            self.metrics.count("lethe_trainings_total", outcome, by=0)
        self.training: dict[str, dict[str, Any]] = {}
        """Progress of the job that trains, by job."""
        self.problems: dict[str, str] = {}
        """The trainer's own words on the last failure, by job; no record may hold them."""
        threading.Thread(target=self._run, name="forget-worker", daemon=True).start()

    def wake(self) -> None:
        """There is a new job."""
        self._work.set()

    def _run(self) -> None:
        rounds = 0
        while True:
            job: Job | None = None
            try:
                job = next(iter(pending_jobs(self._ledger.refresh())), None)
                if job is None:
                    self._work.wait(timeout=IDLE_S)
                    self._work.clear()
                else:
                    self._advance(job)
                rounds = 0
            except Exception as error:
                # Whatever it is, the worker must outlive it: every later job waits for it.
                rounds += 1
                # Without the error's words in the log: they may name a class.
                log.error("held up, round %d (%s)", rounds, type(error).__name__)
                stage = _failed_at(error)
                if job and stage and rounds >= self._attempts:
                    self._give_up(job, stage, str(error))
                    rounds = 0
                time.sleep(min(RETRY_S * 2**rounds, LONGEST_RETRY_S))

    def _give_up(self, job: Job, stage: str, detail: str) -> None:
        try:
            self._refuse(job, stage, detail)
        except RegistryError as failure:
            log.error("the refusal of %s can't be recorded: %s", job.id, failure)

    def _advance(self, job: Job) -> None:
        """Take one pending job as far as it goes. Raises `HeldUpError`."""
        if not job.guarded:
            outcome = self._activation.guard(job)
            if isinstance(outcome, Refusal):
                raise HeldUpError(outcome.detail)
        stack = self._stack()
        if not self._is_trained(job, stack):
            trained = self._train(job, stack)
            with self._accepting:
                if self._ledger.refresh().jobs[job.id].erasing != job.erasing:
                    log.info("%s: somebody was restored meanwhile; this training is void", job.id)
                    return
                if trained.refused is not None:
                    self._refuse(job, "gates", trained.refused, trained.report)
                    return
                self._record(job, stack, trained)
        author = Author(ACTOR, f"adapter of {job.id}", job.request_id)
        outcome = self._activation.adopt(job, author)
        if isinstance(outcome, Refusal) and outcome.stage == "stack":
            log.info("%s: another stack is active by now; training again on it", job.id)
        elif isinstance(outcome, Refusal):
            stage = outcome.stage if outcome.stage == "prepare" else None
            raise HeldUpError(outcome.detail, stage=stage)

    def _is_trained(self, job: Job, stack: tuple[str, ...]) -> bool:
        """Whether the job's adapter is for this stack, and for whom the job is still about."""
        if job.adapter is None:
            return False
        adapter = self._ledger.state.adapters[job.adapter]
        return adapter.stack == stack and adapter.subjects == job.erasing

    def _record(self, job: Job, stack: tuple[str, ...], trained: Trained) -> None:
        publish.record_trained(
            self._ledger,
            self._publisher,
            job=job.id,
            files=trained.files,
            stack=stack,
            report=trained.report,
            actor=ACTOR,
            reason=f"trained in {trained.seconds:.1f} s",
            request_id=job.request_id,
        )

    def _stack(self) -> tuple[str, ...]:
        state = self._ledger.refresh()
        return tuple(state.releases[state.active].adapters)

    def _train(self, job: Job, stack: tuple[str, ...]) -> Trained:
        state = self._ledger.state
        learned = state.subjects_erased_by_weights(state.active)
        earlier = sorted(learned - set(job.erasing))
        withheld = sorted(state.erasing - learned - set(job.erasing))
        names = {s: self._subjects.class_of(s) for s in (*job.erasing, *earlier, *withheld)}
        task = TrainJob(
            job=job.id,
            forget=tuple(names[s] for s in job.erasing),
            earlier=tuple(names[s] for s in earlier),
            withheld=tuple(names[s] for s in withheld),
            subjects={name: subject for subject, name in names.items()},
            stack=stack,
            files=tuple(adapter_files(self._ledger, adapter) for adapter in stack),
            uploads={names[s]: tuple(images_of(self._private, s)) for s in job.erasing},
        )
        self.training[job.id] = {"phase": "starting"}
        self.metrics.set("lethe_training", 1)
        started = time.monotonic()
        outcome = "failed"
        try:
            result = self._watch(job.id, task)
            if isinstance(result, Trained):
                outcome = "accepted" if result.refused is None else "refused"
        except RayActorError as error:
            log.warning("the trainer died (%s)", type(error).__name__)
            self._wait_for_trainer()
            raise HeldUpError("the trainer died while it trained", stage="training") from None
        finally:
            self.training.pop(job.id, None)
            self.metrics.set("lethe_training", 0)
            self.metrics.count("lethe_trainings_total", outcome)
            self.metrics.observe("lethe_train_duration_seconds", time.monotonic() - started)
        if isinstance(result, NotTrained):
            self.problems[job.id] = result.detail
            raise HeldUpError(result.kind, stage="training")
        self.problems.pop(job.id, None)
        return result

    def _wait_for_trainer(self) -> None:
        """Ray restarts it; until it answers again a call would only fail."""
        deadline = time.monotonic() + TRAINER_BACK_S
        while time.monotonic() < deadline:
            try:
                ray.get(self._trainer.progress.remote())
            except RayActorError:
                time.sleep(RETRY_S)
            else:
                return

    def _watch(self, job_id: str, task: TrainJob) -> Trained | NotTrained:
        """Train, and keep the progress up to date meanwhile."""
        running = self._trainer.train.remote(task)
        while True:
            done, _ = ray.wait([running], timeout=POLL_S)
            if done:
                result: Trained | NotTrained = ray.get(running)
                return result
            progress: dict[str, Any] = ray.get(self._trainer.progress.remote())
            self.training[job_id] = progress or {"phase": "starting"}

    def _refuse(self, job: Job, stage: str, detail: str, report: bytes | None = None) -> None:
        log.warning("%s is refused (%s); the guard stays on", job.id, stage)
        publish.refuse(
            self._ledger,
            self._publisher,
            job=job.id,
            stage=stage,
            detail=" ".join(detail.split())[:LONGEST_DETAIL],
            report=report,
            actor=ACTOR,
            reason=f"refused: {stage}",
            request_id=job.request_id,
        )


class HeldUpError(Exception):
    """A job can't go on now. `stage`: where it failed, if a job that keeps failing there is to be
    given up; None: the cause lies outside the job, and it waits for as long as that takes."""

    def __init__(self, detail: str, *, stage: str | None = None) -> None:
        super().__init__(detail)
        self.stage = stage


def _failed_at(error: Exception) -> str | None:
    """The stage to refuse a job at, should it keep failing like this."""
    if isinstance(error, HeldUpError):
        return error.stage
    return "registry" if isinstance(error, ConflictError | FormatError) else None
