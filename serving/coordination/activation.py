"""How control asks the coordinator to act: it repeats a request until an answer comes.

The coordinator may be killed at any moment, also after it acted and before it answered. So before
each try `Activation` looks in the ledger: if the act stands there, it only waits for the
acknowledgement; if not, it asks again. No act is done twice.
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
"""Seconds to wait for a coordinator that is away."""


class Activation:
    """Asks the coordinator until it answers, from control's process. Thread-safe."""

    def __init__(self, coordinator: CoordinatorClient, ledger: Ledger) -> None:
        self._coordinator = coordinator
        self._ledger = ledger
        self._guarding = threading.Lock()

    def guard(self, job: Job) -> Outcome:
        """Mask the job's subjects on every replica."""
        with self._guarding:  # the worker and the command may ask for the same job at once
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
        """Start a trial: the job's adapter answers `percent` of the requests."""

        def once() -> TrialBegun | Declined:
            trial = trial_of(self._ledger.refresh(), job.id)
            if trial is not None:
                return TrialBegun(trial.release)
            return self._coordinator.try_out(job.id, percent, author)

        return self._patiently(once)

    def promote(self, release: int, author: Author) -> Outcome:
        """End the trial by serving `release` for all requests."""
        return self._insist(
            lambda: self._coordinator.promote(release, author),
            lambda state: release if state.releases[release].activated_at else None,
        )

    def end_trial(self, release: int, detail: str, author: Author) -> Declined | None:
        """End the trial without serving `release`; `detail` says why. Asking twice is harmless."""
        return self._patiently(lambda: self._coordinator.end_trial(release, detail, author))

    def roll_back(self, to: int, author: Author, *, instead_of: int | None = None) -> Outcome:
        """Serve the adapters of release `to` again.

        With `instead_of`, only while the active stack is still that of release `instead_of`.
        """
        return self._insist(
            lambda: self._coordinator.roll_back(to, author, instead_of),
            lambda state: rollback_of(state, author.request_id),
        )

    def bring_back(self, author: Author) -> Outcome:
        """Serve the restored subjects again: those whose erasure was ended."""
        return self._insist(
            lambda: self._coordinator.bring_back(author),
            lambda state: None if to_bring_back(state) else state.active,
        )

    def suspend(self, author: Author) -> Halt | Declined:
        """Stop all predictions. Asking twice is harmless."""
        return self._patiently(lambda: self._coordinator.suspend(author))

    def resume(self, author: Author) -> Resumption | Declined:
        """Let replicas answer again. Asking twice is harmless."""
        return self._patiently(lambda: self._coordinator.resume(author))

    def members(self) -> dict[str, MemberView]:
        """What the coordinator knows of each replica."""
        return self._coordinator.members()

    def _insist(self, act: Callable[[], Outcome], find: Callable[[State], int | None]) -> Outcome:
        """Do `act`, unless the ledger already holds its result: `find` returns that release."""

        def once() -> Outcome:
            number = find(self._ledger.refresh())
            return act() if number is None else self._coordinator.acknowledge(number)

        return self._patiently(once)

    def _patiently(self, ask: Callable[[], T]) -> T | Declined:
        """Call `ask` until a coordinator answers; `Declined` if none is back within `BACK_S`."""
        deadline: float | None = None
        while True:
            try:
                return ask()
            except RayActorError as error:
                # The wait starts at the first failure, not at the first call: the coordinator may
                # have worked on the answer for longer than BACK_S before it died. (Retry libraries
                # count from the first call.)
                deadline = deadline or time.monotonic() + BACK_S
                log.warning("the coordinator is away (%s); trying again", type(error).__name__)
                if time.monotonic() > deadline:
                    return Declined("coordinator", "the coordinator does not come back")
                time.sleep(RETRY_S)


def rollback_of(state: State, request_id: str) -> int | None:
    """The release of the activated rollback that this request made; None if there is none."""
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
