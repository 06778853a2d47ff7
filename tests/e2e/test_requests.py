"""Requests of every form, good and bad, against a running server."""

from __future__ import annotations

import base64
import io
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from forgetting.data import open_image_set
from serving.client import ClientError
from serving.metrics import TABLE
from serving.traffic import held_out
from tests.e2e.conftest import Server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def operations(server: Server) -> Iterator[httpx.Client]:
    """The operator API, with nobody's token."""
    with httpx.Client(base_url=server.operator_url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def seven() -> bytes:
    """A held-out scan of a seven."""
    return held_out(open_image_set("digits"), ["7"])[0][1]


def as_jpeg(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).resize((64, 64)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["png", "jpeg", "multipart", "json"])
def test_an_image_is_named_in_every_form_of_body(
    http: httpx.Client, seven: bytes, form: str
) -> None:
    if form == "multipart":
        response = http.post("/v1/predict", files={"image": ("7.png", seven, "image/png")})
    elif form == "json":
        response = http.post("/v1/predict", json={"image": base64.b64encode(seven).decode()})
    else:
        body = as_jpeg(seven) if form == "jpeg" else seven
        response = http.post("/v1/predict", content=body, headers={"Content-Type": f"image/{form}"})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["predictions"][0]["label"] == "7"
    assert len(body["predictions"]) == 5
    assert body["release"] == int(response.headers["x-lethe-release"]) == 0
    assert body["request_id"] == response.headers["x-lethe-request-id"]
    assert "before_mask" not in body


def test_top_k_is_honoured_and_probabilities_add_up(http: httpx.Client, seven: bytes) -> None:
    headers = {"Content-Type": "image/png"}
    answer = http.post("/v1/predict?top_k=10", content=seven, headers=headers).json()
    assert len(answer["predictions"]) == 10
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1, abs=1e-4)


def test_only_the_auditor_is_told_what_the_weights_say(
    http: httpx.Client, server: Server, seven: bytes
) -> None:
    for token, told in ((server.auditor_token, True), (server.operator_token, False)):
        answer = http.post(
            "/v1/predict",
            content=seven,
            headers={"Content-Type": "image/png", "Authorization": f"Bearer {token}"},
        ).json()
        assert ("before_mask" in answer) == told


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + b"\0" * (9 * 2**20)
    + b"\r\n--x--\r\n"
)
BAD_BODIES = [
    ("not an image", b"<html></html>", "image/png", 422, "not an image"),
    ("an empty body", b"", "image/png", 400, "empty"),
    ("another type", b"hello", "text/plain", 415, "text/plain"),
    ("broken JSON", b"{", "application/json", 422, "JSON"),
    ("JSON without an image", b'{"picture": 1}', "application/json", 422, "base64"),
    ("JSON with bad base64", b'{"image": "%%%"}', "application/json", 422, "base64"),
    ("a form without a file", b"--x--\r\n", "multipart/form-data; boundary=x", 422, "file"),
    ("too large a body", b"\0" * (9 * 2**20), "image/png", 413, "larger"),
    ("too large a form", FORM, "multipart/form-data; boundary=x", 413, "larger"),
]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [case[1:] for case in BAD_BODIES],
    ids=[case[0] for case in BAD_BODIES],
)
def test_a_bad_body_gets_a_sentence(
    http: httpx.Client, body: bytes, kind: str, status: int, words: str
) -> None:
    response = http.post("/v1/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert words in response.text


def test_truncated_images_and_bombs_are_refused(http: httpx.Client, seven: bytes) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 2**20
    for body, status in ((seven[:60], 422), (bomb.getvalue(), 413)):
        response = http.post("/v1/predict", content=body, headers={"Content-Type": "image/png"})
        assert response.status_code == status, response.text


def test_wrong_parameters_are_named(http: httpx.Client, seven: bytes) -> None:
    headers = {"Content-Type": "image/png"}
    response = http.post("/v1/predict?top_k=0", content=seven, headers=headers)
    assert (response.status_code, "top_k" in response.text) == (422, True)
    assert http.get("/v1/nothing").status_code == 404
    assert http.get("/v1/predict").status_code == 405


def test_a_release_that_was_never_made_is_not_waited_for(http: httpx.Client, seven: bytes) -> None:
    headers = {"Content-Type": "image/png", "X-Lethe-Min-Release": "99"}
    response = http.post("/v1/predict", content=seven, headers=headers)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/forget"),
        ("POST", "/v1/rollback"),
        ("GET", "/v1/status"),
        ("GET", "/v1/releases"),
        ("GET", "/v1/jobs/x"),
    ],
)
def test_operators_routes_need_the_operators_token(
    operations: httpx.Client, http: httpx.Client, server: Server, method: str, path: str
) -> None:
    for header in ({}, {"Authorization": f"Bearer {server.auditor_token}"}):
        response = operations.request(method, path, headers=header)
        assert response.status_code == 401, response.text
    # The inference port has no such route, whoever asks.
    operator = {"Authorization": f"Bearer {server.operator_token}"}
    assert http.request(method, path, headers=operator).status_code == 404


BAD_COMMANDS = [
    ("/v1/forget", {"classes": ["eleven"]}, 404, "no class 'eleven'"),
    ("/v1/forget", {"classes": []}, 422, "classes"),
    ("/v1/forget", {"classes": ["1", "1"]}, 422, "twice"),
    ("/v1/forget", {"classes": [str(n) for n in range(9)]}, 409, "leave 1 of 10"),
    ("/v1/forget", {"class": "1"}, 422, "classes"),
    ("/v1/rollback", {"release": 77}, 404, "no release 77"),
    ("/v1/rollback", {"release": 0}, 409, "active one already"),
    ("/v1/rollback", {"release": -1}, 422, "release"),
    ("/v1/rollback", {"release": 0, "reason": "two\nlines"}, 422, "reason"),
    ("/v1/forget", {"classes": ["1"], "reason": "two\nlines"}, 422, "reason"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD_COMMANDS)
def test_a_command_that_makes_no_sense_is_refused_and_changes_nothing(
    operations: httpx.Client, server: Server, path: str, body: object, status: int, words: str
) -> None:
    headers = {"Authorization": f"Bearer {server.operator_token}"}
    response = operations.post(path, json=body, headers=headers)
    assert response.status_code == status, response.text
    assert words in response.text
    after = operations.get("/v1/status", headers=headers).json()
    assert (after["release"], after["jobs"], after["registry_seq"]) == (0, [], 0)


def test_probes_answer_and_the_documents_name_every_route(
    http: httpx.Client, operations: httpx.Client
) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.get("/readyz").json()["release"] == 0
    assert operations.get("/healthz").json()["status"] == "ok"
    inference = set(http.get("/openapi.json").json()["paths"])
    commands = set(operations.get("/openapi.json").json()["paths"])
    assert inference & commands == {"/healthz", "/metrics"}
    assert "/v1/predict" in inference
    assert {"/v1/forget", "/v1/jobs/{job}", "/v1/releases", "/v1/rollback"} <= commands
    for client in (http, operations):
        assert client.get("/docs").status_code == 200


def test_frozen_replicas_hold_up_no_question_and_a_killed_listener_comes_back(
    server: Server,
) -> None:
    replicas = server.processes("ray::ServeReplica")
    assert len(replicas) == 2
    with server.client() as client:
        for pid in replicas:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert client.status()["release"] == 0
            assert "lethe_replicas" in client.metrics()
            took = time.monotonic() - started
        finally:
            for pid in replicas:
                os.kill(pid, signal.SIGCONT)
        assert took < 2
        victim = server.process("ray::OperatorApi")
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            try:
                assert client.status()["release"] == 0
                break
            except ClientError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    assert server.process("ray::OperatorApi") != victim


def test_metrics_show_both_replicas_and_only_names_of_the_table(
    http: httpx.Client, seven: bytes
) -> None:
    http.post("/v1/predict", content=seven, headers={"Content-Type": "image/png"})
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    known = {row.name.removesuffix("_total") for row in TABLE}
    assert set(families) <= known
    replicas = {s.labels["replica"] for s in families["lethe_release"].samples}
    assert len(replicas) == 2
    answered = sum(
        s.value
        for s in families["lethe_requests"].samples
        if s.labels["outcome"] == "ok" and s.labels["route"] == "/v1/predict"
    )
    assert answered >= 1
