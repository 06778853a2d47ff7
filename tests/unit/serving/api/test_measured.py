"""How requests are counted, above all those whose client has gone."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI, Request
from starlette.types import Message, Scope

from serving.api.routes import problems
from serving.api.routes.measured import Measured
from serving.monitoring.metrics import OUTCOMES, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("replica")


@pytest.fixture
def api(metrics: Metrics) -> FastAPI:
    """An application with `Measured` and the handlers for errors, like a replica's."""
    api = FastAPI()
    problems.install(api)
    api.add_middleware(Measured, metrics=lambda: metrics)

    @api.post("/read/{name}")
    async def read(name: str, request: Request) -> int:
        return len(await request.body())

    @api.post("/wait/{name}")
    async def wait(name: str) -> None:
        await asyncio.sleep(60)

    return api


async def asked(api: FastAPI, path: str, *messages: Message) -> list[Message]:
    """What the application sends to a client that sends `messages`."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    coming, sent = iter(messages), []

    async def receive() -> Message:
        return next(coming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    await api(scope, receive, send)
    return sent


def counted(metrics: Metrics, route: str) -> dict[str, float]:
    values = {
        outcome: metrics.registry.get_sample_value(
            "lethe_requests_total", {"route": route, "outcome": outcome}
        )
        for outcome in OUTCOMES
    }
    return {outcome: value for outcome, value in values.items() if value}


def test_a_request_is_counted_by_its_routes_template(api: FastAPI, metrics: Metrics) -> None:
    whole: Message = {"type": "http.request", "body": b"abc", "more_body": False}
    sent = asyncio.run(asked(api, "/read/somebody", whole))
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"3")
    assert counted(metrics, "/read/{name}") == {"ok": 1}


def test_a_client_that_goes_within_its_request_is_no_error_of_ours(
    api: FastAPI, metrics: Metrics
) -> None:
    half: Message = {"type": "http.request", "body": b"abc", "more_body": True}
    asyncio.run(asked(api, "/read/somebody", half))
    assert counted(metrics, "/read/{name}") == {"client_error": 1}


def test_a_client_that_no_longer_waits_is_no_error_of_ours(api: FastAPI, metrics: Metrics) -> None:
    whole: Message = {"type": "http.request", "body": b"", "more_body": False}

    async def cancelled() -> None:
        task = asyncio.create_task(asked(api, "/wait/somebody", whole))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert counted(metrics, "/wait/{name}") == {"client_error": 1}
    assert metrics.registry.get_sample_value("lethe_requests_in_flight") == 0
