"""Typed client of the coordinator actor: one method for each remote method of `Coordinator`.

Replicas and control use it. Every method raises `ray.exceptions.RayError` when the coordinator is
away; otherwise it raises what the coordinator raised.
"""

from __future__ import annotations

from typing import Any

import ray

from serving.coordination.messages import (
    Ack,
    Author,
    Declined,
    Halt,
    MemberView,
    Outcome,
    Pulse,
    ReleaseState,
    Resumption,
    TrialBegun,
    Wake,
)


class CoordinatorClient:
    """Each call blocks until the coordinator answers. Thread-safe; can be sent to other actors."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the coordinator's handle."""
        self._actor = actor

    # -- replicas call these; `timeout` in seconds

    def register(self, member: str, *, timeout: float) -> int:
        committed: int = self._ask("register", member, timeout=timeout)
        return committed

    def leave(self, member: str, *, timeout: float) -> None:
        self._ask("leave", member, timeout=timeout)

    def heartbeat(
        self, member: str, running: int, silent: bool, beat: int, *, timeout: float
    ) -> Pulse:
        pulse: Pulse = self._ask("heartbeat", member, running, silent, beat, timeout=timeout)
        return pulse

    def follow(self, member: str, seen: Wake, wait: float, *, timeout: float) -> Wake:
        wake: Wake = self._ask("follow", member, seen, wait, timeout=timeout)
        return wake

    def prepared(self, member: str, state: ReleaseState, *, timeout: float) -> None:
        self._ask("prepared", member, state, timeout=timeout)

    # -- control calls these

    def guard(self, job: str, author: Author) -> Outcome:
        outcome: Outcome = self._ask("guard", job, author)
        return outcome

    def adopt(self, job: str, author: Author) -> Outcome:
        outcome: Outcome = self._ask("adopt", job, author)
        return outcome

    def try_out(self, job: str, percent: int, author: Author) -> TrialBegun | Declined:
        begun: TrialBegun | Declined = self._ask("try_out", job, percent, author)
        return begun

    def promote(self, release: int, author: Author) -> Outcome:
        outcome: Outcome = self._ask("promote", release, author)
        return outcome

    def end_trial(self, release: int, detail: str, author: Author) -> Declined | None:
        problem: Declined | None = self._ask("end_trial", release, detail, author)
        return problem

    def roll_back(self, to: int, author: Author, instead_of: int | None) -> Outcome:
        outcome: Outcome = self._ask("roll_back", to, author, instead_of)
        return outcome

    def bring_back(self, author: Author) -> Outcome:
        outcome: Outcome = self._ask("bring_back", author)
        return outcome

    def suspend(self, author: Author) -> Halt | Declined:
        halt: Halt | Declined = self._ask("suspend", author)
        return halt

    def resume(self, author: Author) -> Resumption | Declined:
        resumption: Resumption | Declined = self._ask("resume", author)
        return resumption

    def acknowledge(self, release: int) -> Ack:
        ack: Ack = self._ask("acknowledge", release)
        return ack

    def members(self) -> dict[str, MemberView]:
        members: dict[str, MemberView] = self._ask("members")
        return members

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
