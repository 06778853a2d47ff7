"""Getting a release activated: asking the coordinator until it answers, and never twice.

The coordinator may be killed at any moment. What the ledger says was activated is only waited for;
what it doesn't say is asked for again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from registry.fold.state import Job, State
from registry.log.ledger import Ledger
from serving.coordination.jobs import release_of, served_release, trial_of
from serving.coordination.messages import (
    Ack,
    Author,
    Halt,
    Outcome,
    Refusal,
    Resumption,
    TrialBegun,
)
from serving.coordination.restoration import to_bring_back

log = logging.getLogger(__name__)

RETRY_S = 0.5
BACK_S = 60.0
"""The coordinator is waited for this long once it is away."""


class Activation:
    """The way to the coordinator. Thread-safe."""

    def __init__(self, coordinator: Any, ledger: Ledger) -> None:
        """`coordinator` is an actor handle."""
        self._coordinator = coordinator
        self._ledger = ledger
        self._guarding = threading.Lock()

    def guard(self, job: Job) -> Outcome:
        """Mask the job's subjects on every replica."""
        with self._guarding:  # the worker and the command may both come for the same job
            author = Author(job.actor, job.reason, job.request_id)
            return self._insist(
                lambda: ray.get(self._coordinator.guard.remote(job.id, author)),
                lambda state: release_of(state, job.id, "guard"),
            )

    def adopt(self, job: Job, author: Author) -> Outcome:
        """Put the job's adapter on top of the active ones."""
        return self._insist(
            lambda: ray.get(self._coordinator.adopt.remote(job.id, author)),
            lambda state: served_release(state, job.id),
        )

    def try_out(self, job: Job, percent: int, author: Author) -> TrialBegun | Refusal:
        """Have the job's adapter answer a share of the requests."""

        def once() -> TrialBegun | Refusal:
            trial = trial_of(self._ledger.refresh(), job.id)
            if trial is not None:
                return TrialBegun(trial.release)
            begun: TrialBegun | Refusal = ray.get(
                self._coordinator.try_out.remote(job.id, percent, author)
            )
            return begun

        begun: TrialBegun | Refusal = self._patiently(once)
        return begun

    def promote(self, release: int, author: Author) -> Outcome:
        """Serve the release on trial to everybody."""
        return self._insist(
            lambda: ray.get(self._coordinator.promote.remote(release, author)),
            lambda state: release if state.releases[release].activated_at else None,
        )

    def end_trial(self, release: int, detail: str, author: Author) -> Refusal | None:
        """Take the release off trial. To ask again is harmless."""
        problem: Refusal | None = self._patiently(
            lambda: ray.get(self._coordinator.end_trial.remote(release, detail, author))
        )
        return problem

    def roll_back(self, to: int, author: Author, *, instead_of: int | None = None) -> Outcome:
        """Serve release `to`'s adapters again, if the stack is still that of `instead_of`."""
        return self._insist(
            lambda: ray.get(self._coordinator.roll_back.remote(to, author, instead_of)),
            lambda state: rollback_of(state, author.request_id),
        )

    def bring_back(self, author: Author) -> Outcome:
        """Serve those again whose erasure was ended."""
        return self._insist(
            lambda: ray.get(self._coordinator.bring_back.remote(author)),
            lambda state: None if to_bring_back(state) else state.active,
        )

    def suspend(self, author: Author) -> Halt | Refusal:
        """Have nothing answered. To ask again for what is so already is harmless."""
        halt: Halt | Refusal = self._patiently(
            lambda: ray.get(self._coordinator.suspend.remote(author))
        )
        return halt

    def resume(self, author: Author) -> Resumption | Refusal:
        """Have replicas answer again."""
        resumption: Resumption | Refusal = self._patiently(
            lambda: ray.get(self._coordinator.resume.remote(author))
        )
        return resumption

    def members(self) -> dict[str, dict[str, object]]:
        """What the coordinator knows of each replica."""
        members: dict[str, dict[str, object]] = ray.get(self._coordinator.members.remote())
        return members

    def _insist(self, act: Callable[[], Outcome], find: Callable[[State], int | None]) -> Outcome:
        """Call the coordinator until it answers; what the ledger holds already isn't done twice."""

        def once() -> Outcome:
            number = find(self._ledger.refresh())
            if number is not None:
                ack: Ack = ray.get(self._coordinator.acknowledge.remote(number))
                return ack
            return act()

        outcome: Outcome = self._patiently(once)
        return outcome

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """`ask` until there is a coordinator to answer; a `Refusal` when none comes back."""
        deadline: float | None = None
        while True:
            try:
                return ask()
            except RayActorError as error:
                # From when it was first away: it may have worked on the answer for longer.
                deadline = deadline or time.monotonic() + BACK_S
                log.warning("the coordinator is away (%s); trying again", type(error).__name__)
                if time.monotonic() > deadline:
                    return Refusal("coordinator", "the coordinator does not come back")
                time.sleep(RETRY_S)


def rollback_of(state: State, request_id: str) -> int | None:
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
