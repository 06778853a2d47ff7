"""Getting a release activated: asking the coordinator until it answers, and never twice.

The coordinator may be killed at any moment. What the ledger says was activated is only waited for;
what it doesn't say is asked for again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import RayActorError

from registry.fold.state import Job, State
from registry.log.ledger import Ledger
from serving.coordination.client import CoordinatorClient
from serving.coordination.jobs import release_of, served_release, trial_of
from serving.coordination.messages import (
    Author,
    Declined,
    Halt,
    MemberView,
    Outcome,
    Resumption,
    TrialBegun,
)
from serving.coordination.unserved import to_bring_back

T = TypeVar("T")

log = logging.getLogger(__name__)

RETRY_S = 0.5
BACK_S = 60.0
"""The coordinator is waited for this long once it is away."""


class Activation:
    """Asks the coordinator until it answers. Thread-safe."""

    def __init__(self, coordinator: CoordinatorClient, ledger: Ledger) -> None:
        self._coordinator = coordinator
        self._ledger = ledger
        self._guarding = threading.Lock()

    def guard(self, job: Job) -> Outcome:
        """Mask the job's subjects on every replica."""
        with self._guarding:  # the worker and the command may both come for the same job
            author = Author(job.actor, job.reason, job.request_id)
            return self._insist(
                lambda: self._coordinator.guard(job.id, author),
                lambda state: release_of(state, job.id, "guard"),
            )

    def adopt(self, job: Job, author: Author) -> Outcome:
        """Put the job's adapter on top of the active ones."""
        return self._insist(
            lambda: self._coordinator.adopt(job.id, author),
            lambda state: served_release(state, job.id),
        )

    def try_out(self, job: Job, percent: int, author: Author) -> TrialBegun | Declined:
        """Have the job's adapter answer a share of the requests."""

        def once() -> TrialBegun | Declined:
            trial = trial_of(self._ledger.refresh(), job.id)
            if trial is not None:
                return TrialBegun(trial.release)
            return self._coordinator.try_out(job.id, percent, author)

        return self._patiently(once)

    def promote(self, release: int, author: Author) -> Outcome:
        """Serve the release on trial to everybody."""
        return self._insist(
            lambda: self._coordinator.promote(release, author),
            lambda state: release if state.releases[release].activated_at else None,
        )

    def end_trial(self, release: int, detail: str, author: Author) -> Declined | None:
        """Take the release off trial. It is harmless to ask again."""
        return self._patiently(lambda: self._coordinator.end_trial(release, detail, author))

    def roll_back(self, to: int, author: Author, *, instead_of: int | None = None) -> Outcome:
        """Serve release `to`'s adapters again, if the stack is still that of `instead_of`."""
        return self._insist(
            lambda: self._coordinator.roll_back(to, author, instead_of),
            lambda state: rollback_of(state, author.request_id),
        )

    def bring_back(self, author: Author) -> Outcome:
        """Serve those again whose erasure was ended."""
        return self._insist(
            lambda: self._coordinator.bring_back(author),
            lambda state: None if to_bring_back(state) else state.active,
        )

    def suspend(self, author: Author) -> Halt | Declined:
        """Have nothing answered. It is harmless to ask again."""
        return self._patiently(lambda: self._coordinator.suspend(author))

    def resume(self, author: Author) -> Resumption | Declined:
        """Have replicas answer again."""
        return self._patiently(lambda: self._coordinator.resume(author))

    def members(self) -> dict[str, MemberView]:
        """What the coordinator knows of each replica."""
        return self._coordinator.members()

    def _insist(self, act: Callable[[], Outcome], find: Callable[[State], int | None]) -> Outcome:
        """`act`, unless the ledger already holds what it would do: `find` names that release."""

        def once() -> Outcome:
            number = find(self._ledger.refresh())
            return act() if number is None else self._coordinator.acknowledge(number)

        return self._patiently(once)

    def _patiently(self, ask: Callable[[], T]) -> T | Declined:
        """`ask` until there is a coordinator to answer; `Declined` when none comes back."""
        deadline: float | None = None
        while True:
            try:
                return ask()
            except RayActorError as error:
                # Counted from the first failure, which no retry library does: the coordinator may
                # have worked on the answer for longer than BACK_S before it died.
                deadline = deadline or time.monotonic() + BACK_S
                log.warning("the coordinator is away (%s); trying again", type(error).__name__)
                if time.monotonic() > deadline:
                    return Declined("coordinator", "the coordinator does not come back")
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
