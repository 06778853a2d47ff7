"""The forget worker: a thread in control's process that runs forget jobs, oldest first.

It reads from the ledger which steps of a job are left, so a crash loses at most the training that
was running:

    guard -> closed form, if set -> train -> gates -> trained (durable)
    -> trial on a share of the requests, if asked for -> acknowledged, or refused

Jobs that allow it and wait at the same time are trained as one task. If that task is refused, the
ledger says so and each job is trained alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from registry.errors import ConflictError, FormatError, RegistryError
from registry.fold.state import Job, State
from registry.log.adapters import adapter_files
from registry.log.ledger import Ledger
from registry.publish.jobs import record_trained, refuse_job
from registry.records.record import MAX_REASON
from registry.signing.keys import Signer
from registry.store.contract import Store
from registry.subjects.personal import images_of
from registry.subjects.subject_map import SubjectMap
from serving.coordination.activation import Activation
from serving.coordination.jobs import (
    is_batchable,
    is_cancelled,
    is_trained,
    pending_jobs,
    provisional_release,
    trained_together,
    trial_of,
)
from serving.coordination.messages import Author, Declined, Outcome, TrialBegun
from serving.monitoring.client import MonitorClient
from serving.monitoring.metrics import Metrics
from serving.monitoring.trial_verdict import TrialTerms, verdict
from serving.training.client import HeldUpError, TrainerClient
from serving.training.messages import NotTrained, Trained, TrainJob

log = logging.getLogger(__name__)

ACTOR = "lethe-worker"
TRIAL_POLL_S = 1.0
IDLE_S = 5.0
RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
LONGEST_DETAIL = 1500
TRAININGS = ("accepted", "refused", "failed")


class ForgetWorker:
    """Starts a thread that trains and publishes one job after another."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Signer,
        *,
        private: Store,
        activation: Activation,
        trainer: TrainerClient,
        monitor: MonitorClient,
        attempts: int,
        terms: TrialTerms,
        closed_form: bool,
        company_s: float,
        accepting: threading.Lock,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            private: Holds the subject map and uploaded images.
            attempts: A job is given up after this many failures.
            terms: When a trial is decided.
            closed_form: Serve a closed form until the training has ended.
            company_s: Seconds that a job waits for others to be trained with it.
            accepting: The lock that commands hold while they change what is under erasure.
            metrics: Metrics about trainings.
        """
        self._ledger = ledger
        self._publisher = publisher
        self._private = private
        self._subjects = SubjectMap(private)
        self._activation = activation
        self._trainer = trainer
        self._monitor = monitor
        self._attempts = attempts
        self._terms = terms
        self._closed_form = closed_form
        self._company_s = company_s
        self.no_closed_form: dict[str, str] = {}
        """Job -> why no closed form is served for it."""
        self._accepting = accepting
        self._work = threading.Event()
        self._over = threading.Event()
        self._failures: Counter[str] = Counter()
        """Job -> its failures in a row. Those with a cause outside the job don't count."""
        self._cancelled: set[str] = set()
        """Cancelled jobs: a training of one of them must end."""
        self.metrics = metrics
        for outcome in TRAININGS:
            # Start at 0: Prometheus sees the first training as an increase only then.
            self.metrics.count("lethe_trainings_total", outcome, by=0)
        self.training: dict[str, dict[str, Any]] = {}
        """Job -> progress, for the jobs that are being trained."""
        self.problems: dict[str, str] = {}
        """Job -> the trainer's words on the last failure. They may name classes, so no record holds
        them."""
        threading.Thread(target=self._run, name="forget-worker", daemon=True).start()

    def wake(self) -> None:
        """Look for a new job now."""
        self._work.set()

    def cancel(self, job: str) -> None:
        """End the training of `job`, which the ledger says was cancelled or restored."""
        self._cancelled.add(job)
        self.go_on()

    def go_on(self) -> None:
        """Try again now: what held a job up may be over."""
        self._over.set()
        self._work.set()

    def forgive(self, job: str) -> None:
        """Discard what is known of earlier tries of `job`: it is about to be retried."""
        self._cancelled.discard(job)
        self.no_closed_form.pop(job, None)
        self.problems.pop(job, None)
        self._failures.pop(job, None)

    def _run(self) -> None:
        rounds = 0
        # By hand, not with tenacity: each round may work on another job.
        while True:
            job: Job | None = None
            try:
                job = next(iter(pending_jobs(self._ledger.refresh())), None)
                if job is None:
                    self._work.wait(timeout=IDLE_S)
                    self._work.clear()
                else:
                    self._advance(job)
                    self._failures.pop(job.id, None)
                rounds = 0
            except Exception as error:
                # Any error may come here. The thread must survive it: all later jobs need it.
                rounds += 1
                # The log doesn't quote the error, whose words may name a class.
                log.error("held up, round %d (%s)", rounds, type(error).__name__)
                stage = _failed_at(error)
                if job and stage and self._is_last_failure(job):
                    self._give_up(job, stage, str(error))
                    rounds = 0
                self._over.wait(retry_after(rounds))
                self._over.clear()

    def _is_last_failure(self, job: Job) -> bool:
        """Count a failure of `job`. True if it has had as many as it may have."""
        self._failures[job.id] += 1
        return self._failures[job.id] >= self._attempts

    def _give_up(self, job: Job, stage: str, detail: str) -> None:
        self._failures.pop(job.id, None)
        try:
            self._refuse(trained_together(self._ledger.refresh(), job), stage, detail)
        except RegistryError as failure:
            log.error("the refusal of %s can't be recorded: %s", job.id, failure)

    def _advance(self, job: Job) -> None:
        """Do all steps of a pending job that are possible now. Raises `HeldUpError`."""
        jobs = self._gathered(job)
        for each in jobs:
            if not each.guarded:
                outcome = self._activation.guard(each)
                if isinstance(outcome, Declined):
                    raise HeldUpError(outcome.detail)
        if self._closed_form and len(jobs) == 1 and job.id not in self.no_closed_form:
            self._bridge(job)
            if job.id in self._cancelled:
                return
        state = self._ledger.refresh()
        stack = state.stack_for(job.id)
        if not is_trained(state, job, stack):
            trained = self._train(jobs, stack)
            with self._accepting:
                if trained is None or not all(map(self._still_wanted, jobs)):
                    return
                if trained.refused is not None:
                    self._refuse(jobs, "gates", trained.refused, trained.report)
                    return
                self._record(jobs, stack, trained)
        if job.canary is not None:
            self._try_out(job, job.canary)
        else:
            self._settle(job, self._activation.adopt(job, self._author(job)))

    def _gathered(self, job: Job) -> tuple[Job, ...]:
        """The job and those to train as one task with it. Waits up to `company_s` for them."""
        if is_batchable(job) and job.adapter is None:
            age = time.time() - job.at.timestamp()
            time.sleep(min(max(self._company_s - age, 0.0), self._company_s))
        state = self._ledger.refresh()
        return trained_together(state, state.jobs[job.id])

    def _still_wanted(self, job: Job) -> bool:
        """Whether what was trained for `job` may still be recorded. Hold `accepting`."""
        now = self._ledger.refresh().jobs[job.id]
        if is_cancelled(now):
            log.info("%s was cancelled; its training is void", job.id)
        elif now.erasing != job.erasing:
            log.info("%s: a subject was restored meanwhile; this training is void", job.id)
        elif now.tried_from != job.tried_from:
            log.info("%s was cancelled and retried; the earlier training is void", job.id)
        same = now.erasing == job.erasing and now.tried_from == job.tried_from
        return same and not is_cancelled(now)

    def _settle(self, job: Job, outcome: Outcome | TrialBegun) -> None:
        """Raises `HeldUpError` when the release could not be served.

        Not when another stack is active by now: the next round trains the job on that one.
        """
        if isinstance(outcome, Declined) and outcome.stage == "stack":
            log.info("%s: another stack is active by now; training again on it", job.id)
        elif isinstance(outcome, Declined):
            stage = outcome.stage if outcome.stage == "prepare" else None
            raise HeldUpError(outcome.detail, stage=stage)

    def _author(self, job: Job) -> Author:
        return Author(ACTOR, f"adapter of {job.id}", job.request_id)

    def _bridge(self, job: Job) -> None:
        """Serve a closed form for the job until its training has ended.

        If the closed form fails or is refused, only the guard stands until then.
        """
        state = self._ledger.refresh()
        if provisional_release(state, job.id) is not None:
            return
        known = state.jobs[job.id].adapter
        stack = state.stack_for(job.id)
        if known is None:
            try:
                fitted = self._train((job,), stack, closed_form=True)
            except HeldUpError as error:
                self._do_without(job, self.problems.pop(job.id, str(error)))
                return
            with self._accepting:
                if fitted is None or not self._still_wanted(job):
                    return
                if fitted.refused is not None:
                    self._do_without(job, fitted.refused)
                    return
                self._record((job,), stack, fitted, provisional=True)
        elif not state.adapters[known].provisional:
            return
        outcome = self._activation.adopt(job, self._author(job))
        if isinstance(outcome, Declined):
            self._do_without(job, outcome.detail)

    def _do_without(self, job: Job, why: str) -> None:
        log.info("%s has no closed form; only the guard stands until it is trained", job.id)
        self.no_closed_form[job.id] = why

    def _try_out(self, job: Job, percent: int) -> None:
        """Begin or judge the trial of the job's adapter. Called again until the trial has ended."""
        state = self._ledger.refresh()
        trial = trial_of(state, job.id)
        if trial is None:
            ended = _returned(state, job)
            if ended is not None:
                report = self._ledger.get_blob(_report_of(state, job))
                with self._accepting:  # whoever took it off may be about to cancel the job
                    if self._still_wanted(job):
                        self._refuse((job,), "canary", ended, report)
            else:
                author = self._author(job)
                self._settle(job, self._activation.try_out(job, percent, author))
            return
        seen = self._monitor.trial(trial.release)
        elapsed = time.time() - trial.at.timestamp()
        found = verdict(seen, elapsed=elapsed, terms=self._terms)
        if found is None:
            time.sleep(TRIAL_POLL_S)
            return
        author = Author(ACTOR, found.detail[:MAX_REASON], job.request_id)
        log.info("release %d: %s (%s)", trial.release, found.act, found.detail)
        if found.act == "promote":
            self._settle(job, self._activation.promote(trial.release, author))
            return
        problem = self._activation.end_trial(trial.release, found.detail, author)
        if problem is not None:
            raise HeldUpError(problem.detail)

    def _record(
        self,
        jobs: Sequence[Job],
        stack: tuple[str, ...],
        trained: Trained,
        *,
        provisional: bool = False,
    ) -> None:
        job, *others = jobs
        record_trained(
            self._ledger,
            self._publisher,
            job=job.id,
            files=trained.files,
            stack=stack,
            report=trained.report,
            actor=ACTOR,
            reason=f"{'fitted' if provisional else 'trained'} in {trained.seconds:.1f} s",
            request_id=job.request_id,
            provisional=provisional,
            others=[other.id for other in others],
        )

    def _train(
        self, jobs: Sequence[Job], stack: tuple[str, ...], *, closed_form: bool = False
    ) -> Trained | None:
        """Train one adapter for `jobs`; None when one was cancelled. Raises `HeldUpError`."""
        job = jobs[0]
        ids = {each.id for each in jobs}
        state = self._ledger.state
        erasing = tuple(subject for each in jobs for subject in each.erasing)
        learned = {s for adapter in stack for s in state.adapters[adapter].subjects}
        earlier = sorted(learned - set(erasing))
        withheld = sorted(state.erasing - learned - set(erasing))
        names = {s: self._subjects.class_of(s) for s in (*erasing, *earlier, *withheld)}
        task = TrainJob(
            job=job.id,
            forget=tuple(names[s] for s in erasing),
            earlier=tuple(names[s] for s in earlier),
            withheld=tuple(names[s] for s in withheld),
            subjects={name: subject for subject, name in names.items()},
            stack=stack,
            files=tuple(adapter_files(self._ledger, adapter) for adapter in stack),
            uploads={names[s]: tuple(images_of(self._private, s)) for s in erasing},
            closed_form=closed_form,
            together=len(jobs) > 1,
            attempt=max(len(each.retries) for each in jobs),
        )
        self.training |= dict.fromkeys(ids, {"phase": "starting"})
        self.metrics.set("lethe_training", 1)
        started = time.monotonic()
        outcome = "failed"
        try:
            result = self._trainer.train(
                task,
                cancelled=lambda: not ids.isdisjoint(self._cancelled),
                note=lambda progress: self.training.update(dict.fromkeys(ids, progress)),
            )
            if isinstance(result, Trained):
                outcome = "accepted" if result.refused is None else "refused"
        finally:
            for id in ids:
                self.training.pop(id, None)
            self.metrics.set("lethe_training", 0)
            if not closed_form and ids.isdisjoint(self._cancelled):
                self.metrics.count("lethe_trainings_total", outcome)
                self.metrics.observe("lethe_train_duration_seconds", time.monotonic() - started)
        if not ids.isdisjoint(self._cancelled):
            return None
        if isinstance(result, NotTrained):
            self.problems |= dict.fromkeys(ids, result.detail)
            raise HeldUpError(result.kind, stage="training")
        for id in ids:
            self.problems.pop(id, None)
        return result

    def _refuse(
        self, jobs: Sequence[Job], stage: str, detail: str, report: bytes | None = None
    ) -> None:
        """Record that `jobs` are refused. If there are several, only training them as one task is
        refused: each is trained alone after that."""
        job, *others = jobs
        log.warning("%s is refused (%s); the guard stays on", [each.id for each in jobs], stage)
        refuse_job(
            self._ledger,
            self._publisher,
            job=job.id,
            stage=stage,
            detail=" ".join(detail.split())[:LONGEST_DETAIL],
            report=report,
            actor=ACTOR,
            reason=f"refused: {stage}",
            request_id=job.request_id,
            others=[other.id for other in others],
        )


def retry_after(rounds: int) -> float:
    """Seconds until the next try after `rounds` failures in a row.

    `rounds` has no limit, since some causes are waited for as long as they last.
    """
    # The limit of 10 avoids an overflow: 2.0^1024 is not a float.
    return min(RETRY_S * 2.0 ** min(rounds, 10), LONGEST_RETRY_S)


def _returned(state: State, job: Job) -> str | None:
    """Why the trial of the job's adapter was ended without serving it, in the current try.

    None when no trial was.
    """
    for release in reversed(list(state.releases.values())):
        tried = release.job == job.id and release.seq > job.tried_from
        if tried and job.adapter in release.adapters and release.returned:
            return release.returned
    return None


def _report_of(state: State, job: Job) -> str:
    return state.adapters[job.adapter or ""].report


def _failed_at(error: Exception) -> str | None:
    """The stage to name when a job is refused after repeating this error; None: never refuse."""
    if isinstance(error, HeldUpError):
        return error.stage
    return "registry" if isinstance(error, ConflictError | FormatError) else None
