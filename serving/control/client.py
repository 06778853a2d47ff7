"""Typed clients of the control actor, with the methods of `Control` that other processes call.

Every method raises `ray.exceptions.RayError` when control is away; otherwise it raises what control
raised.
"""

from __future__ import annotations

from typing import Any

import ray

from serving.config.settings import Settings
from serving.control.messages import (
    Answer,
    ForgetRequest,
    Rejection,
    RestoreRequest,
    RetryRequest,
    RollbackRequest,
)
from serving.coordination.messages import Author
from serving.monitoring.messages import ControlFigures
from serving.monitoring.reactions import Remark, Rollback


class ControlClient:
    """For the operator API and replicas: every method is awaited. Can be sent to other actors."""

    def __init__(self, actor: Any) -> None:
        """`actor` is control's handle."""
        self._actor = actor

    async def forget(self, request: ForgetRequest, author: Author) -> Answer:
        answer: Answer = await self._actor.forget.remote(request, author)
        return answer

    async def rollback(self, request: RollbackRequest, author: Author) -> Answer:
        answer: Answer = await self._actor.rollback.remote(request, author)
        return answer

    async def restore(self, request: RestoreRequest, author: Author) -> Answer:
        answer: Answer = await self._actor.restore.remote(request, author)
        return answer

    async def cancel(self, job_id: str, author: Author) -> Answer:
        answer: Answer = await self._actor.cancel.remote(job_id, author)
        return answer

    async def retry(self, request: RetryRequest, author: Author) -> Answer:
        answer: Answer = await self._actor.retry.remote(request, author)
        return answer

    async def suspend(self, author: Author) -> Answer:
        answer: Answer = await self._actor.suspend.remote(author)
        return answer

    async def resume(self, author: Author) -> Answer:
        answer: Answer = await self._actor.resume.remote(author)
        return answer

    async def job(self, job_id: str) -> Answer:
        answer: Answer = await self._actor.job.remote(job_id)
        return answer

    async def releases(self) -> list[dict[str, Any]]:
        releases: list[dict[str, Any]] = await self._actor.releases.remote()
        return releases

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = await self._actor.status.remote()
        return status

    async def report(self, job_id: str) -> bytes | Rejection:
        report: bytes | Rejection = await self._actor.report.remote(job_id)
        return report

    async def figures(self) -> ControlFigures:
        figures: ControlFigures = await self._actor.figures.remote()
        return figures


class BlockingControlClient:
    """For the watch actor and `serving.app`: every method blocks. Can be sent to other actors.

    Implements `serving.monitoring.reactions.Operator`.
    """

    def __init__(self, actor: Any) -> None:
        """`actor` is control's handle."""
        self._actor = actor

    def settings(self) -> Settings:
        """The settings that control was started with."""
        settings: Settings = self._ask("settings")
        return settings

    def figures(self, *, timeout: float) -> ControlFigures:
        """Numbers for the metrics page. `timeout`: seconds."""
        figures: ControlFigures = self._ask("figures", timeout=timeout)
        return figures

    def roll_back(self, rollback: Rollback, author: Author) -> bool:
        """Make an automatic rollback; False when control rejected it."""
        request = RollbackRequest(rollback.to, rollback.instead_of)
        answer: Answer = self._ask("rollback", request, author)
        return not isinstance(answer, Rejection)

    def remark(self, remark: Remark, author: Author) -> None:
        self._ask("remark", remark.text, author)

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
