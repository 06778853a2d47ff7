"""Typed clients of the monitor and watch actors: one method for each method that others call.

Every method raises `ray.exceptions.RayError` when the actor is away.
"""

from __future__ import annotations

from typing import Any

import ray

from serving.monitoring.messages import ControlFigures, ProbeSnapshot, Proof, Snapshot
from serving.monitoring.trial_verdict import Seen


class MonitorClient:
    """Every method blocks; `timeout` in seconds. Can be sent to other actors."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the monitor's handle."""
        self._actor = actor

    def push(self, replica: str, snapshot: Snapshot, *, timeout: float) -> None:
        self._ask("push", replica, snapshot, timeout=timeout)

    def push_probes(self, sender: str, snapshot: ProbeSnapshot, *, timeout: float) -> bool:
        asked: bool = self._ask("push_probes", sender, snapshot, timeout=timeout)
        return asked

    def trial(self, release: int) -> Seen | None:
        seen: Seen | None = self._ask("trial", release)
        return seen

    def proof(self, *, timeout: float) -> Proof | None:
        proof: Proof | None = self._ask("proof", timeout=timeout)
        return proof

    def proof_of(self, release: int, stack: str, *, timeout: float) -> Proof | None:
        proof: Proof | None = self._ask("proof_of", release, stack, timeout=timeout)
        return proof

    def page(self, figures: ControlFigures | None, *, timeout: float) -> bytes:
        page: bytes = self._ask("page", figures, timeout=timeout)
        return page

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)


class AsyncMonitorClient:
    """The monitor for event loops: every method is awaited. Can be sent to other actors."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the monitor's handle."""
        self._actor = actor

    async def push(self, replica: str, snapshot: Snapshot) -> None:
        await self._actor.push.remote(replica, snapshot)

    async def page(self, figures: ControlFigures | None) -> bytes:
        page: bytes = await self._actor.page.remote(figures)
        return page


class WatchClient:
    """The watch actor. Every method blocks."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the watch actor's handle."""
        self._actor = actor

    def ping(self) -> str:
        """The name of the watch actor, as soon as it runs. Raises what its constructor raised."""
        name: str = self._ask("ping")
        return name

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
