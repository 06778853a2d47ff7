"""A job's events: over a socket, from the operators' routes, with control's actor scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from ray.exceptions import RayActorError

from serving.api.operator_api import build_operator_api
from serving.api.routes import job_events
from serving.api.routes.access import Desk
from serving.client import Client, ClientError
from serving.config.settings import Settings
from serving.control.client import ControlClient
from serving.control.messages import Rejection
from tests.ports import free_port

QUEUED: dict[str, Any] = {"job": "job-1", "state": "queued", "classes": ["ä\u2028ö", "line\nbreak"]}
TRAINING = {**QUEUED, "state": "training", "progress": {"step": 1}}
LATER = {**QUEUED, "state": "training", "progress": {"step": 2}}
DONE = {**QUEUED, "state": "done", "release": 2}
AWAY = RayActorError()
TOKEN = {"Authorization": "Bearer token"}


@contextmanager
def served(*answers: dict[str, Any] | Rejection | Exception) -> Iterator[str]:
    """The URL of an operator API whose control answers like this about its job; the last answer
    stays."""
    left = list(answers)

    async def job(_: str) -> dict[str, Any] | Rejection:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    control = ControlClient(SimpleNamespace(job=SimpleNamespace(remote=job)))
    settings = Settings.model_construct()
    api = build_operator_api(Desk(settings, ("7",), "token", control, monitor=None))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def often_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "POLL_S", 0.01)


def events_of(url: str) -> httpx.Response:
    return httpx.get(f"{url}/v1/jobs/job-1/events", headers=TOKEN, trust_env=False)


def event(name: str, view: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(view)}\n\n"


def test_each_change_is_an_event_and_the_last_one_ends_the_stream() -> None:
    with served(QUEUED, QUEUED, TRAINING, TRAINING, LATER, LATER, DONE) as url:
        answer = events_of(url)
    told = [("job", QUEUED), ("job", TRAINING), ("job", LATER), ("end", DONE)]
    assert answer.text == "".join(event(*each) for each in told)


def test_no_proxy_keeps_the_stream_or_holds_it_back() -> None:
    with served(DONE) as url:
        answer = events_of(url)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"


def test_the_stream_waits_while_control_is_away() -> None:
    with served(QUEUED, *[AWAY] * 20, TRAINING, AWAY, TRAINING, DONE) as url:
        answer = events_of(url)
    told = [("job", QUEUED), ("job", TRAINING), ("end", DONE)]
    assert answer.text == "".join(event(*each) for each in told)


def test_comments_come_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_events.QUIET_S == 15
    monkeypatch.setattr(job_events, "QUIET_S", 0.1)
    with served(*[QUEUED] * 100, DONE) as url:
        first, *comments, last = events_of(url).text.removesuffix("\n\n").split("\n\n")
    assert (f"{first}\n\n", f"{last}\n\n") == (event("job", QUEUED), event("end", DONE))
    assert set(comments) == {": nothing new"}
    assert len(comments) >= 3


def test_the_stream_ends_when_another_registry_was_put_in_its_place() -> None:
    with served(QUEUED, Rejection(404, "There is no job-1.")) as url:
        assert events_of(url).text == event("job", QUEUED)


def test_a_job_that_is_not_there_is_a_problem_and_no_stream() -> None:
    with served(Rejection(404, "There is no job-1.")) as url:
        answer = events_of(url)
        with Client(url, "token") as client, pytest.raises(ClientError, match=r"There is no job-1"):
            list(client.events("job-1"))
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_client_reads_every_view_and_passes_over_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_events, "QUIET_S", 0.02)
    with served(*[QUEUED] * 20, TRAINING, AWAY, LATER, DONE) as url, Client(url, "token") as client:
        assert list(client.events("job-1")) == [QUEUED, TRAINING, LATER, DONE]


def test_a_client_that_has_seen_enough_leaves_the_stream() -> None:
    with served(QUEUED, TRAINING) as url, Client(url, "token") as client:
        assert next(view for view in client.events("job-1") if "progress" in view) == TRAINING
        assert client.job("job-1") == TRAINING


def test_the_document_says_that_the_route_answers_with_an_event_stream() -> None:
    desk = Desk(Settings.model_construct(), ("7",), "token", None, None)
    route = build_operator_api(desk).openapi()["paths"]["/v1/jobs/{job}/events"]["get"]
    assert route["responses"]["200"] == {
        "description": "Successful Response",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
