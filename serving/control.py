"""Control: the forget command's state machine, resumable from the ledger at every step.

    forget:  requested (durable) -> guard release acknowledged -> answer 202
    worker:  train -> trained (durable) -> gates -> adapter release acknowledged, or refused

The worker takes the oldest job that is not at its end and looks up in the ledger what is left
of it, so a crash anywhere costs at most the training that was under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from registry import publish
from registry.adapters import adapter_files
from registry.errors import ConflictError, FormatError
from registry.state import Job, State
from serving.coordinator import Ack, Author, Outcome, Refusal
from serving.home import home_of, open_ledger, open_subjects, signer
from serving.jobs import (
    Rejection,
    job_view,
    named,
    pending_jobs,
    release_of,
    releases_view,
    report_of,
)
from serving.settings import Settings
from serving.training import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

ACTOR = "lethe-control"
POLL_S = 0.25
RETRY_S = 0.5
HELD_UP_S = 2.0
TRAINER_BACK_S = 120.0
RECENT = 20
"""Ended jobs that the status shows."""


class Control:
    """Runs as a threaded Ray actor; the public methods are called remotely."""

    def __init__(
        self,
        settings: Settings,
        *,
        coordinator: Any,
        trainer: Any,
        backbone: str,
        classes: tuple[str, ...],
    ) -> None:
        """`coordinator` and `trainer` are actor handles, `backbone` is a fingerprint."""
        self._settings = settings
        self._coordinator = coordinator
        self._trainer = trainer
        self._backbone = backbone
        self._classes = classes
        home = home_of(settings)
        self._ledger = open_ledger(home)
        self._subjects = open_subjects(home)
        self._operator = signer(home, "operator")
        self._publisher = signer(home, "publisher")
        self._ledger.refresh()
        self._training: dict[str, dict[str, Any]] = {}
        self._train_seconds: dict[str, float] = {}
        self._accepting = threading.Lock()
        self._work = threading.Event()
        threading.Thread(target=self._run, name="forget-worker", daemon=True).start()

    # -- commands

    def forget(
        self, classes: Sequence[str], actor: str, reason: str, request_id: str
    ) -> dict[str, Any] | Rejection:
        """Accept a forget command: durable, and masked on every replica, when this returns."""
        author = Author(actor, reason, request_id)
        with self._accepting:
            state = self._ledger.refresh()
            rejection = self._why_not(classes, state) if request_id not in state.requests else None
            if rejection is not None:
                return rejection
            try:
                job = publish.request_forget(
                    self._ledger,
                    self._operator,
                    subjects=[self._subjects.assign(name) for name in classes],
                    backbone=self._backbone,
                    actor=actor,
                    reason=reason,
                    request_id=request_id,
                )
            except (ConflictError, FormatError) as error:
                return Rejection(409 if isinstance(error, ConflictError) else 422, str(error))
        outcome = self._guard(job, author)
        self._work.set()
        view = self.job(job.id)
        if isinstance(view, dict) and isinstance(outcome, Ack):
            view["guard"] = _ack_view(outcome)
        return view

    def rollback(
        self, to: int, actor: str, reason: str, request_id: str
    ) -> dict[str, Any] | Rejection:
        """Serve release `to`'s adapters again as a new release; every guard stays."""
        state = self._ledger.refresh()
        if to not in state.releases:
            return Rejection(
                404, f"There is no release {to}.", f"Releases go from 0 to {state.last_release}."
            )
        release = state.releases[to]
        if to == state.active:
            return Rejection(409, f"Release {to} is the active one already.")
        if to and release.activated_at is None:
            return Rejection(409, f"Release {to} was never active, so it can't be returned to.")
        author = Author(actor, reason, request_id)
        outcome = self._insist(
            lambda: ray.get(self._coordinator.roll_back.remote(to, author)),
            lambda now: _made_by(now, request_id),
        )
        if isinstance(outcome, Refusal):
            return Rejection(409, f"The rollback was not made: {outcome.detail}.")
        now = self._ledger.refresh()
        masked = sorted(named(s, self._subjects.class_of) for s in now.erasing)
        return {**_ack_view(outcome), "rolled_back_to": to, "still_masked": masked}

    # -- questions

    def job(self, job_id: str) -> dict[str, Any] | Rejection:
        state = self._ledger.refresh()
        if job_id not in state.jobs:
            return Rejection(404, f"There is no job {job_id}.", "`lethe status` lists the jobs.")
        return self._view(job_id, state, [job.id for job in pending_jobs(state)])

    def releases(self) -> list[dict[str, Any]]:
        return releases_view(self._ledger.refresh(), class_of=self._subjects.class_of)

    def status(self) -> dict[str, Any]:
        """What is active, what is being forgotten, and which replica runs what."""
        state = self._ledger.refresh()
        learned = state.subjects_erased_by_weights(state.active)

        def names(subjects: Sequence[str] | frozenset[str]) -> list[str]:
            return sorted(named(subject, self._subjects.class_of) for subject in subjects)

        return {
            "release": state.active,
            "acknowledged": state.confirmed >= state.active,
            "backbone": self._backbone,
            "classes": len(self._classes),
            "under_erasure": names(state.erasing),
            "forgotten_by_weights": names(learned),
            "masked_only": names(state.erasing - learned),
            "registry_seq": state.seq,
            "replicas": ray.get(self._coordinator.members.remote()),
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
            class_of=self._subjects.class_of,
            progress=self._training.get(job_id, {}),
            ahead=waiting.index(job_id) if job_id in waiting else 0,
        )

    def report(self, job_id: str) -> bytes | Rejection:
        """The measured report of a job, as JSON bytes."""
        state = self._ledger.refresh()
        digest = report_of(state.jobs[job_id], state) if job_id in state.jobs else None
        if digest is None:
            return Rejection(404, f"There is no report of job {job_id} (yet).")
        return self._ledger.get_blob(digest)

    def figures(self) -> dict[str, float]:
        """What the metrics page shows of commands and jobs."""
        state = self._ledger.refresh()
        waiting = pending_jobs(state)
        return {
            "pending": len(waiting),
            "oldest_pending": min((job.at.timestamp() for job in waiting), default=0.0),
            "accepted": len(state.jobs),
            "done": sum(job.state == "done" for job in state.jobs.values()),
            "refused": sum(job.state == "refused" for job in state.jobs.values()),
            "seq": state.seq,
            "active": state.active,
        }

    # -- accepting

    def _why_not(self, classes: Sequence[str], state: State) -> Rejection | None:
        if not classes:
            return Rejection(422, "No class was named.", "Name at least one class to forget.")
        if len(set(classes)) < len(classes):
            return Rejection(422, "A class was named twice.")
        unknown = [name for name in classes if name not in self._classes]
        if unknown:
            some = ", ".join(self._classes[:12]) + (", …" if len(self._classes) > 12 else "")
            return Rejection(
                404,
                f"The backbone has no class {', '.join(map(repr, unknown))}.",
                f"Its classes are: {some}",
            )
        gone = {named(subject, self._subjects.class_of) for subject in state.erasing}
        again = [name for name in classes if name in gone]
        if again:
            return Rejection(
                409,
                f"Forgotten already (or being forgotten): {', '.join(again)}.",
                "`lethe status` shows how far that is.",
            )
        left = len(self._classes) - len(gone) - len(classes)
        if left < 2:
            return Rejection(
                409,
                f"This would leave {max(left, 0)} of {len(self._classes)} classes to answer with.",
                "At least two must stay: a model that knows one class tells nothing.",
            )
        return None

    def _guard(self, job: Job, author: Author) -> Outcome:
        return self._insist(
            lambda: ray.get(self._coordinator.guard.remote(job.id, author)),
            lambda state: release_of(state, job.id, "guard"),
        )

    def _insist(self, act: Callable[[], Outcome], find: Callable[[State], int | None]) -> Outcome:
        """Call the coordinator until it answers; what the ledger holds already isn't done twice."""
        while True:
            try:
                number = find(self._ledger.refresh())
                if number is not None:
                    ack: Ack = ray.get(self._coordinator.acknowledge.remote(number))
                    return ack
                return act()
            except RayActorError as error:
                log.warning("the coordinator is away (%s); trying again", type(error).__name__)
                time.sleep(RETRY_S)

    # -- the worker

    def _run(self) -> None:
        while True:
            job = next(iter(pending_jobs(self._ledger.refresh())), None)
            if job is None:
                self._work.wait(timeout=5)
                self._work.clear()
                continue
            try:
                self._advance(job)
            except Exception as error:
                # Whatever it is, the worker must outlive it: every later job waits for it.
                log.exception("job %s is held up: %s", job.id, error)
                time.sleep(HELD_UP_S)

    def _advance(self, job: Job) -> None:
        """Take one pending job as far as it goes."""
        author = Author(ACTOR, f"job {job.id}", job.request_id)
        if not job.guarded:
            self._guard(job, author)
        stack = self._stack()
        if job.adapter is None or self._ledger.state.adapters[job.adapter].stack != stack:
            trained = self._train(job, stack)
            if isinstance(trained, NotTrained):
                self._refuse(job, "training", trained.detail)
                return
            if trained.refused is not None:
                self._refuse(job, "gates", trained.refused, trained.report)
                return
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
        outcome = self._insist(
            lambda: ray.get(self._coordinator.adopt.remote(job.id, author)),
            lambda state: release_of(state, job.id, "adapter"),
        )
        if isinstance(outcome, Refusal) and outcome.stage == "stack":
            log.info("job %s: %s; training again on the new stack", job.id, outcome.detail)
        elif isinstance(outcome, Refusal):
            self._refuse(job, outcome.stage, outcome.detail)

    def _stack(self) -> tuple[str, ...]:
        state = self._ledger.refresh()
        return tuple(state.releases[state.active].adapters)

    def _train(self, job: Job, stack: tuple[str, ...]) -> Trained | NotTrained:
        state = self._ledger.state
        learned = state.subjects_erased_by_weights(state.active)
        earlier = sorted(learned - set(job.subjects))
        withheld = sorted(state.erasing - learned - set(job.subjects))
        names = {s: self._subjects.class_of(s) for s in (*job.subjects, *earlier, *withheld)}
        task = TrainJob(
            job=job.id,
            forget=tuple(names[s] for s in job.subjects),
            earlier=tuple(names[s] for s in earlier),
            withheld=tuple(names[s] for s in withheld),
            subjects={name: subject for subject, name in names.items()},
            stack=stack,
            files=tuple(adapter_files(self._ledger, adapter) for adapter in stack),
        )
        self._training[job.id] = {"phase": "starting"}
        try:
            for attempt in range(1, self._settings.forget.attempts + 1):
                try:
                    return self._watch(job.id, task)
                except RayActorError as error:
                    log.warning("training of job %s, start %d: %s", job.id, attempt, error)
                    self._wait_for_trainer()
        finally:
            self._training.pop(job.id, None)
        return NotTrained(
            f"the trainer stopped {self._settings.forget.attempts} times before it was done; its "
            "log says why (memory is the usual reason), the class stays masked"
        )

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
            self._training[job_id] = progress or {"phase": "starting"}

    def _refuse(self, job: Job, stage: str, detail: str, report: bytes | None = None) -> None:
        log.warning("job %s is refused (%s); the guard stays on", job.id, stage)
        publish.refuse(
            self._ledger,
            self._publisher,
            job=job.id,
            stage=stage,
            detail=detail,
            report=report,
            actor=ACTOR,
            reason=f"refused: {stage}",
            request_id=job.request_id,
        )


def _ack_view(ack: Ack) -> dict[str, Any]:
    return {
        "release": ack.release,
        "acknowledged_at": ack.at,
        "swap_ms": ack.ms,
        "replicas": ack.members,
    }


def _made_by(state: State, request_id: str) -> int | None:
    """The activated rollback that `request_id` made."""
    return next(
        (
            number
            for number, release in state.releases.items()
            if release.kind == "rollback"
            and release.request_id == request_id
            and release.activated_at
        ),
        None,
    )
