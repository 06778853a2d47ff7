"""The HTTP application of every replica: inference, health and the metrics page."""

from __future__ import annotations

from fastapi import FastAPI

from serving.api.routes import (
    answering,
    batch,
    embedding,
    health,
    inference,
    inference_protocol,
    problems,
)
from serving.api.routes.answering import recognizer
from serving.api.routes.body_limit import BodyLimit
from serving.api.routes.direct import Direct
from serving.api.routes.health import Sources
from serving.api.routes.measured import Measured
from serving.control.client import ControlClient
from serving.monitoring.client import AsyncMonitorClient

FORM_BYTES = 64 * 1024
"""Bytes that a form or JSON may have in addition to its image."""


def build_inference_api(
    *, max_body_bytes: int, control: ControlClient, monitor: AsyncMonitorClient
) -> FastAPI:
    """The application. Bodies have at most `max_body_bytes`; the metrics page needs `control` and
    `monitor`."""
    api = FastAPI(
        title="Lethe",
        summary="A vision model that can forget.",
        version="0.1.0",
        responses={"4XX": {"description": "A problem (RFC 9457): what was wrong, what to do."}},
    )
    api.state.sources = Sources(control, monitor)
    problems.install(api)
    answering.install(api)
    inference_protocol.install(api)
    for routes in (inference, batch, embedding, inference_protocol, health):
        api.include_router(routes.router)
    api.add_middleware(Direct, handlers=api.exception_handlers)  # the first added is the innermost
    api.add_middleware(BodyLimit, limit=max_body_bytes)
    api.add_middleware(Measured, metrics=lambda: recognizer().metrics)
    return api
