"""POST /v1/embed over HTTP: both forms, its stamps, the words of its refusals, the typed client."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from forgetting.models.backbone import load_backbone, save_backbone
from serving.api.routes.embedding import wants_binary
from serving.api.routes.problems import ProblemError
from serving.client import ClientError, InferenceClient
from serving.replica.recognizer import Recognizer
from tests.ports import free_port
from tests.unit.serving.in_process import LocalCoordinator
from tests.unit.serving.listening import listening
from tests.unit.serving.small_server import SmallServer, image_of, predict

MakeServer = Callable[..., SmallServer]
PNG = {"Content-Type": "image/png"}
RAW = {**PNG, "Accept": "application/octet-stream"}


@pytest.fixture
def server(small_server: MakeServer) -> SmallServer:
    return small_server(port=free_port(), limits={"body_bytes": 5000})


@pytest.fixture
def replica(server: SmallServer) -> Iterator[Recognizer]:
    replica = server.replica()
    with listening(server, replica):
        yield replica


@pytest.fixture
def http(server: SmallServer, replica: Recognizer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.settings.url, trust_env=False) as client:
        yield client


def outcomes(replica: Recognizer) -> dict[str, float]:
    """How requests to the route ended, as the metrics count it."""
    return {
        sample.labels["outcome"]: sample.value
        for family in replica.metrics.families()
        for sample in family.samples
        if sample.name == "lethe_requests_total" and sample.labels["route"] == "/v1/embed"
    }


def test_both_forms_hold_the_same_numbers_and_stamps_and_are_counted(
    server: SmallServer, replica: Recognizer, http: httpx.Client
) -> None:
    number = server.mask("zoe")
    image = image_of(server.settings, "cy")
    forms = [
        http.post("/v1/embed", content=image, headers=PNG),
        http.post("/v1/embed", json={"image": base64.b64encode(image).decode()}),
        http.post("/v1/embed", files={"image": ("cy.png", image, "image/png")}),
    ]
    raw = http.post("/v1/embed", content=image, headers=RAW)
    assert raw.headers["content-type"] == "application/octet-stream"
    assert raw.headers["x-lethe-dim"] == "24"
    numbers = list(struct.unpack("<24f", raw.content))
    assert sum(n * n for n in numbers) == pytest.approx(1.0, abs=1e-5)
    for form in forms:
        assert form.status_code == 200, form.text
        body = form.json()
        assert body["embedding"] == numbers, "float32 comes through JSON as it is"
        assert (body["dim"], body["release"], body["masked_only"]) == (24, number, 1)
        assert body["space"] == form.headers["x-lethe-space"] == raw.headers["x-lethe-space"]
        assert body["request_id"] == form.headers["x-lethe-request-id"]
    predicted = http.post("/v1/predict", content=image, headers=PNG)
    for name, value in predicted.headers.items():
        if name.startswith("x-lethe-") and name != "x-lethe-request-id":
            assert raw.headers[name] == value
    assert "forward;dur=" in raw.headers["server-timing"]
    assert raw.headers["vary"] == "Accept"
    assert outcomes(replica) == {"ok": 4}


def test_the_typed_client_says_what_the_headers_say(
    server: SmallServer, http: httpx.Client
) -> None:
    file = Path(server.settings.images) / "cy" / "0.png"
    with InferenceClient(server.settings.url) as client:
        found = client.embed_file(file)
        again = client.embed(file.read_bytes(), content_type="image/png")
        with pytest.raises(ClientError, match="not an image"):
            client.embed(b"no image", content_type="image/png")
    assert found.vector == again.vector
    said = http.post("/v1/embed", content=file.read_bytes(), headers=PNG).json()
    assert list(found.vector) == said["embedding"]
    assert (found.release, found.parent, found.space, found.masked_only) == (0, 0, said["space"], 0)


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"no image", PNG, 422, "not an image"),
        (b"", PNG, 400, "empty"),
        (b"\0" * 6000, PNG, 413, "larger than 5,000"),
        (b"words", {"Content-Type": "text/plain"}, 415, "text/plain"),
        (b"{", {"Content-Type": "application/json"}, 422, "base64"),
        (b"no image", {**PNG, "Accept": "image/png"}, 406, "Accept application/json"),
        (b"no image", {**PNG, "X-Lethe-Release": "0"}, 401, "auditor"),
        (b"no image", {**PNG, "X-Lethe-Deadline-Ms": "0"}, 422, "X-Lethe-Deadline-Ms"),
    ],
)
def test_what_is_wrong_is_a_problem_in_whatever_form_is_accepted(
    replica: Recognizer,
    http: httpx.Client,
    content: bytes,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    for accept in ({}, {"Accept": "application/octet-stream"}):
        refused = http.post("/v1/embed", content=content, headers={**accept, **headers})
        assert (refused.status_code, words.lower() in refused.text.lower()) == (status, True)
        assert refused.headers["content-type"] == "application/problem+json"
    assert outcomes(replica) == {"client_error": 2}


def test_while_serving_is_suspended_it_answers_as_a_prediction_does(
    server: SmallServer, replica: Recognizer, http: httpx.Client
) -> None:
    LocalCoordinator(server.coordinator.handle).suspend(server.author())
    image = image_of(server.settings, "cy")
    asked = [
        http.post(f"/v1/{route}", content=image, headers=RAW) for route in ("embed", "predict")
    ]
    assert [each.status_code for each in asked] == [503, 503]
    assert asked[0].json() == asked[1].json()
    assert asked[0].headers["retry-after"] == asked[1].headers["retry-after"] == "30"
    assert "x-lethe-space" not in asked[0].headers
    assert outcomes(replica) == {"not_current": 1}


def test_a_sealed_edit_is_a_501_that_says_what_to_do_and_no_fault_of_the_server(
    small_server: MakeServer, tiny: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(tiny / "backbone")
    sealed = replace(backbone, spec=replace(backbone.spec, edit_in_head=True))
    save_backbone(tmp_path / "sealed", sealed)
    server = small_server(port=free_port(), backbone={"directory": tmp_path / "sealed"})
    replica = server.replica()
    with listening(server, replica):
        refused = httpx.post(
            f"{server.settings.url}/v1/embed",
            content=image_of(server.settings, "cy"),
            headers=RAW,
            trust_env=False,
        )
    assert refused.status_code == 501
    assert "sealed with a feature edit folded into its head" in refused.json()["detail"]
    assert "have no feature edit" in refused.json()["advice"]
    assert outcomes(replica) == {"client_error": 1}
    assert predict(replica, "cy").guesses[0].label == "cy"


@pytest.mark.parametrize(
    ("accept", "binary"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/*", False),
        ("application/octet-stream", True),
        ("Application/Octet-Stream; q=0.9, application/json;q=0.8", True),
        ("application/octet-stream;q=0.2, */*;q=0.1", True),
        ("application/octet-stream;q=0, */*", False),
        ("application/json;q=0, */*", True),
        ("text/html, application/octet-stream;q=oops", True),
    ],
)
def test_the_form_is_the_one_that_accept_prefers(accept: str, binary: bool) -> None:
    assert wants_binary(accept) is binary


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "*/*;q=0"])
def test_who_accepts_neither_form_is_told_which_there_are(accept: str) -> None:
    with pytest.raises(ProblemError) as refused:
        wants_binary(accept)
    assert refused.value.rejection.status == 406
