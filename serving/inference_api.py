"""The HTTP face that every replica shows: inference, its probes and the metrics page."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import outcome_of
from serving.routes import answering, batch, inference, inference_protocol, probes, problems
from serving.routes.answering import recognizer
from serving.routes.body_limit import BodyLimit
from serving.routes.direct import Direct

FORM_BYTES = 64 * 1024
"""What a form or JSON may weigh beside its image."""


class Measured:
    """Counts and times every request, whatever becomes of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = recognizer().metrics
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
        finally:
            metrics.add("lethe_requests_in_flight", -1)
            route = _route_of(scope)
            metrics.count("lethe_requests_total", route, outcome_of(status))
            metrics.observe("lethe_request_duration_seconds", time.perf_counter() - started, route)


def _route_of(scope: Scope) -> str:
    """The route's template, never the path as given: a label must not grow with the input."""
    path: str = getattr(scope.get("route"), "path", "unknown")
    return path


def build_inference_api(*, max_body_bytes: int) -> FastAPI:
    """Bodies may have `max_body_bytes`."""
    api = FastAPI(
        title="Lethe",
        summary="A vision model that can forget.",
        version="0.1.0",
        responses={"4XX": {"description": "A problem (RFC 9457): what was wrong, what to do."}},
    )
    problems.install(api)
    answering.install(api)
    inference_protocol.install(api)
    for router in (inference.router, batch.router, inference_protocol.router, probes.router):
        api.include_router(router)
    api.add_middleware(Direct, handlers=api.exception_handlers)  # the innermost comes first
    api.add_middleware(BodyLimit, limit=max_body_bytes)
    api.add_middleware(Measured)
    return api
