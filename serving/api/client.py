"""The operator API's actor, typed."""

from __future__ import annotations

from typing import Any

import ray


class OperatorApiClient:
    def __init__(self, actor: Any) -> None:
        """`actor` is the handle of `serving.api.operator_api.OperatorApi`."""
        self._actor = actor

    def problem(self, patience: float) -> str | None:
        """Why it doesn't listen; None once it does. Waits `patience` seconds for that."""
        problem: str | None = self._ask("problem", patience)
        return problem

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
