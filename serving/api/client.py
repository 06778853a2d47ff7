"""Typed client of the operator API's actor; `serving.app` uses it at a start."""

from __future__ import annotations

from typing import Any

import ray


class OperatorApiClient:
    """Every method blocks."""

    def __init__(self, actor: Any) -> None:
        """`actor` is the handle of `serving.api.operator_api.OperatorApi`."""
        self._actor = actor

    def problem(self, patience: float) -> str | None:
        """Why the actor doesn't listen; None as soon as it does. Waits `patience` seconds at most.

        Raises `ray.exceptions.RayError` when the actor is away.
        """
        problem: str | None = self._ask("problem", patience)
        return problem

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
