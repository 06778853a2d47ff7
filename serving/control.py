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
from registry.errors import ConflictError, FormatError, RegistryError
from registry.state import Job, State
from serving.coordinator import Ack, Author, Outcome, Refusal
from serving.home import home_of, open_ledger, open_subjects, read_ledger, signer
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
from serving.train_job import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

ACTOR = "lethe-control"
POLL_S = 0.25
RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
COORDINATOR_BACK_S = 60.0
LONGEST_DETAIL = 1500
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
        read_ledger(self._ledger)
        self._training: dict[str, dict[str, Any]] = {}
        self._details: dict[str, str] = {}
        self._accepting = threading.Lock()
        self._guarding = threading.Lock()
        self._work = threading.Event()
        threading.Thread(target=self._run, name="forget-worker", daemon=True).start()

    # -- commands

    def forget(
        self, classes: Sequence[str], actor: str, reason: str, request_id: str
    ) -> dict[str, Any] | Rejection:
        """Accept a forget command: durable, and masked on every replica, when this returns."""
        with self._accepting:
            state = self._ledger.refresh()
            known = state.requests.get(request_id)
            if known is None:
                rejection = self._why_not(classes, state)
            else:
                rejection = self._why_not_again(classes, state.jobs[known])
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
            except ConflictError as error:
                return Rejection(409, str(error))
            except FormatError as error:
                return Rejection(422, str(error))
        self._work.set()
        outcome = self._guard(job)
        if isinstance(outcome, Refusal):
            return Rejection(
                503,
                f"{job.id} is accepted and durable, but not masked everywhere yet: "
                f"{outcome.detail}.",
                "It is tried again until it is; `lethe status` shows when.",
            )
        view = self.job(job.id)
        if isinstance(view, dict):
            view["guard"] = _ack_view(outcome)
        return view

    def rollback(
        self, to: int, actor: str, reason: str, request_id: str
    ) -> dict[str, Any] | Rejection:
        """Serve release `to`'s adapters again as a new release; every guard stays."""
        state = self._ledger.refresh()
        made = _made_by(state, request_id)
        if made is None:
            rejection = _why_no_rollback(to, state)
        else:
            before = state.releases[made].to
            rejection = (
                Rejection(409, f"This Idempotency-Key has rolled back to release {before}.")
                if before != to
                else None
            )
        if rejection is not None:
            return rejection
        author = Author(actor, reason, request_id)
        outcome = self._insist(
            lambda: ray.get(self._coordinator.roll_back.remote(to, author)),
            lambda now: _made_by(now, request_id),
        )
        if isinstance(outcome, Refusal):
            status = 409 if outcome.stage == "stack" else 503
            return Rejection(status, f"The rollback was not made: {outcome.detail}.")
        now = self._ledger.refresh()
        masked = sorted(named(s, self._subjects.class_of) for s in now.erasing)
        return {**_ack_view(outcome), "rolled_back_to": to, "still_masked": masked}

    # -- questions

    def settings(self) -> Settings:
        """What this process was started with."""
        return self._settings

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
            problem=self._details.get(job_id),
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

    def _why_not_again(self, classes: Sequence[str], job: Job) -> Rejection | None:
        names = [named(subject, self._subjects.class_of) for subject in job.subjects]
        if list(classes) == names:
            return None
        return Rejection(409, f"This Idempotency-Key was used for {job.id}, for other classes.")

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

    def _guard(self, job: Job) -> Outcome:
        with self._guarding:  # the worker and the command may both come for the same job
            author = Author(job.actor, job.reason, job.request_id)
            return self._insist(
                lambda: ray.get(self._coordinator.guard.remote(job.id, author)),
                lambda state: release_of(state, job.id, "guard"),
            )

    def _insist(self, act: Callable[[], Outcome], find: Callable[[State], int | None]) -> Outcome:
        """Call the coordinator until it answers; what the ledger holds already isn't done twice."""
        deadline = time.monotonic() + COORDINATOR_BACK_S
        while True:
            try:
                number = find(self._ledger.refresh())
                if number is not None:
                    ack: Ack = ray.get(self._coordinator.acknowledge.remote(number))
                    return ack
                return act()
            except RayActorError as error:
                log.warning("the coordinator is away (%s); trying again", type(error).__name__)
                if time.monotonic() > deadline:
                    return Refusal("coordinator", "the coordinator does not come back")
                time.sleep(RETRY_S)

    # -- the worker

    def _run(self) -> None:
        rounds = 0
        while True:
            job: Job | None = None
            try:
                job = next(iter(pending_jobs(self._ledger.refresh())), None)
                if job is None:
                    self._work.wait(timeout=5)
                    self._work.clear()
                else:
                    self._advance(job)
                rounds = 0
            except Exception as error:
                # Whatever it is, the worker must outlive it: every later job waits for it.
                rounds += 1
                lasting = isinstance(error, HeldUpError) and error.lasting
                # Without the error's words in the log: they may name a class.
                log.error("held up, round %d (%s)", rounds, type(error).__name__)
                if job is not None and lasting and rounds >= self._settings.forget.attempts:
                    self._give_up(job, error)
                    rounds = 0
                time.sleep(min(RETRY_S * 2**rounds, LONGEST_RETRY_S))

    def _give_up(self, job: Job, error: Exception) -> None:
        try:
            self._refuse(job, "training", str(error))
        except RegistryError as failure:
            log.error("the refusal of %s can't be recorded: %s", job.id, failure)

    def _advance(self, job: Job) -> None:
        """Take one pending job as far as it goes. Raises `HeldUpError`."""
        if not job.guarded:
            outcome = self._guard(job)
            if isinstance(outcome, Refusal):
                raise HeldUpError(outcome.detail, lasting=False)
        stack = self._stack()
        if job.adapter is None or self._ledger.state.adapters[job.adapter].stack != stack:
            trained = self._train(job, stack)
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
        author = Author(ACTOR, f"adapter of {job.id}", job.request_id)
        outcome = self._insist(
            lambda: ray.get(self._coordinator.adopt.remote(job.id, author)),
            lambda state: release_of(state, job.id, "adapter"),
        )
        if isinstance(outcome, Refusal) and outcome.stage == "stack":
            log.info("%s: another stack is active by now; training again on it", job.id)
        elif isinstance(outcome, Refusal):
            raise HeldUpError(outcome.detail, lasting=outcome.stage == "prepare")

    def _stack(self) -> tuple[str, ...]:
        state = self._ledger.refresh()
        return tuple(state.releases[state.active].adapters)

    def _train(self, job: Job, stack: tuple[str, ...]) -> Trained:
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
            result = self._watch(job.id, task)
        except RayActorError as error:
            log.warning("the trainer died (%s)", type(error).__name__)
            self._wait_for_trainer()
            raise HeldUpError("the trainer died while it trained", lasting=True) from None
        finally:
            self._training.pop(job.id, None)
        if isinstance(result, NotTrained):
            self._details[job.id] = result.detail
            raise HeldUpError(result.kind, lasting=True)
        self._details.pop(job.id, None)
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
            self._training[job_id] = progress or {"phase": "starting"}

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
    """A job can't go on now. `lasting`: trying a few times more and then giving up is right; else
    the cause lies outside the job, and it waits for as long as that takes."""

    def __init__(self, detail: str, *, lasting: bool) -> None:
        super().__init__(detail)
        self.lasting = lasting


def _why_no_rollback(to: int, state: State) -> Rejection | None:
    if to not in state.releases:
        return Rejection(
            404, f"There is no release {to}.", f"Releases go from 0 to {state.last_release}."
        )
    if to == state.active:
        return Rejection(409, f"Release {to} is the active one already.")
    if to and state.releases[to].activated_at is None:
        return Rejection(409, f"Release {to} was never active, so it can't be returned to.")
    return None


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
