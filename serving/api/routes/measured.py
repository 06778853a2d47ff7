"""Middleware that counts and times every request, also those that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.monitoring.metrics import Metrics, outcome_of

GONE = 499
"""The status that is counted for a client that went away before the response."""


class Measured:
    """The middleware. `metrics` returns the replica's metrics and is called for each request."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics]) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._metrics()
        status = 500
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.add("lethe_requests_in_flight", 1)
        try:
            await self._app(scope, receive, note_status)
        except asyncio.CancelledError:  # Serve cancels a request whose client has gone
            status = GONE
            raise
        finally:
            metrics.add("lethe_requests_in_flight", -1)
            route = _route_of(scope)
            metrics.count("lethe_requests_total", route, outcome_of(status))
            metrics.observe("lethe_request_duration_seconds", time.perf_counter() - started, route)


def _route_of(scope: Scope) -> str:
    """The route's template. The path itself would make a new label value for each path sent."""
    path: str = getattr(scope.get("route"), "path", "unknown")
    return path
