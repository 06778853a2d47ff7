"""The operator API: a port that is taken for a moment, the token, and the words of errors."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serving.api.operator_api import OperatorApi
from serving.api.routes import problems
from serving.config.home import home_of, prepare_home, token
from serving.config.settings import Settings
from tests.ports import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    port = free_port()
    chosen = Settings(home=tmp_path, operator={"port": port}, limits={"body_bytes": 1000})
    prepare_home(home_of(chosen))
    return chosen


def test_it_waits_for_its_port_and_says_what_keeps_it_from_listening(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.operator_port)):
        listener = OperatorApi(settings, ("7",), control=None, monitor=None)
        assert listener.problem(0.2) == "Address already in use"
    assert listener.problem(5) is None
    with httpx.Client(base_url=settings.operator_url, trust_env=False) as visitor:
        assert visitor.get("/healthz").json() == {"status": "ok"}
        assert visitor.get("/console").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff"}):
            refused = visitor.get("/v1/status", headers=header)
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
        large = visitor.post("/v1/forget", content=b" " * 2000)
        assert large.status_code == 413
        assert visitor.post("/v1/predict", content=b"x").status_code == 404


@pytest.mark.parametrize("reason", ["two\\u2028lines", "\\u00ad", "half \\ud800"])
def test_a_reason_that_the_ledger_would_not_take_is_refused_at_once(
    settings: Settings, reason: str
) -> None:
    listener = OperatorApi(settings, ("7",), control=None, monitor=None)
    assert listener.problem(5) is None
    headers = {"Authorization": f"Bearer {token(home_of(settings), 'operator')}"}
    headers["Content-Type"] = "application/json"
    with httpx.Client(base_url=settings.operator_url, trust_env=False, headers=headers) as operator:
        for path, rest in (("rollback", ', "release": 0'), ("suspend", "")):
            refused = operator.post(f"/v1/{path}", content=f'{{"reason": "{reason}"{rest}}}')
            assert refused.status_code == 422, refused.text
            assert "reason" in refused.json()["detail"]


def test_problems_say_when_to_ask_again_and_speak_the_protocols_of_their_paths() -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/{path:path}")
    def busy(path: str) -> object:
        return problems.problem(429, "Full.", "Ask later.")

    with TestClient(app) as visitor:
        ours = visitor.get("/v1/predict")
        assert (ours.status_code, ours.headers["retry-after"]) == (429, "1")
        assert (ours.json()["detail"], ours.json()["advice"]) == ("Full.", "Ask later.")
        assert "error" not in ours.json()
        theirs = visitor.get("/v2/models/lethe")
        assert theirs.json()["error"] == "Full."
        assert int(theirs.headers["content-length"]) == len(theirs.content)
