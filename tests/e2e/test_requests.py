"""Requests of every form, good and bad, against a running server."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from forgetting.data.preprocess import transform
from forgetting.data.sources import open_image_set
from forgetting.models.backbone import features_and_logits
from serving.client import ClientError, InferenceClient
from serving.config.backbones import open_backbone
from serving.config.sources import load_settings
from serving.loadgen.traffic import held_out
from serving.monitoring.metrics import TABLE
from tests.e2e.conftest import Server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def operations(server: Server) -> Iterator[httpx.Client]:
    """An HTTP client of the operator API, without a token."""
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


def test_an_embedding_is_the_same_in_both_forms_on_both_replicas_and_is_counted(
    http: httpx.Client, server: Server, seven: bytes
) -> None:
    three = held_out(open_image_set("digits"), ["3"])[0][1]
    with InferenceClient(server.url) as client:
        found = [client.embed(seven, content_type="image/png") for _ in range(20)]
        other = client.embed(three, content_type="image/png")
        with pytest.raises(ClientError, match="not an image"):
            client.embed(b"no image", content_type="image/png")
    assert {(each.release, each.parent, each.masked_only) for each in found} == {(0, 0, 0)}
    assert len({each.space for each in [*found, other]}) == 1
    vectors = np.array([each.vector for each in found])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.ptp(vectors, axis=0).max() < 1e-4
    assert np.dot(vectors[0], other.vector) < 0.9
    said = http.post("/v1/embed", files={"image": ("7.png", seven, "image/png")})
    assert said.status_code == 200, said.text
    np.testing.assert_allclose(said.json()["embedding"], vectors[0], atol=1e-4, rtol=0)
    predicted = http.post("/v1/predict", content=seven, headers={"Content-Type": "image/png"})
    stamps = {name for name in predicted.headers if name.startswith("x-lethe-")}
    assert stamps | {"x-lethe-space", "x-lethe-dim", "x-lethe-masked-only"} == {
        name for name in said.headers if name.startswith("x-lethe-")
    }
    # What the head reads, as PyTorch computes it from the file.
    backbone = open_backbone(load_settings(server.config))
    pixels = transform(backbone.spec.preprocess)(Image.open(io.BytesIO(seven))).unsqueeze(0)
    feature = features_and_logits(backbone.model, pixels)[0][0].numpy()
    np.testing.assert_allclose(vectors[0], feature / np.linalg.norm(feature), atol=1e-4, rtol=0)

    def counted() -> dict[str, float]:
        families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
        of_route = [s for s in families["lethe_requests"].samples if s.name.endswith("_total")]
        totals = dict.fromkeys(("ok", "client_error"), 0.0)
        for sample in of_route:
            if sample.labels["route"] == "/v1/embed":
                totals[sample.labels["outcome"]] += sample.value
        return totals

    deadline = time.monotonic() + 10  # replicas report every second
    while counted() != {"ok": 22, "client_error": 1}:
        assert time.monotonic() < deadline, counted()
        time.sleep(0.3)


# -- many images at once


def test_a_batch_is_answered_line_by_line_in_order(server: Server, seven: bytes) -> None:
    three = held_out(open_image_set("digits"), ["3"])[0][1]
    with InferenceClient(server.url, server.auditor_token) as client:
        lines = list(client.predict_batch([seven, b"no image", three] + [seven] * 30, top_k=2))
    assert [line["index"] for line in lines] == list(range(33))
    assert lines[1]["problem"]["status"] == 422
    named = [line["predictions"][0]["label"] for line in lines if "problem" not in line]
    assert named == ["7", "3"] + ["7"] * 30
    assert {line["release"] for line in lines if "problem" not in line} == {0}
    assert lines[0]["before_mask"][0]["label"] == "7"


def test_batches_that_are_too_long_or_empty_are_refused(http: httpx.Client, seven: bytes) -> None:
    for files, status, words in (
        ([("images", ("x", seven))] * 65, 400, "64"),
        ([("note", (None, b"no file"))], 422, "no file"),
    ):
        response = http.post("/v1/predict/batch", files=files)
        assert (response.status_code, words in response.text) == (status, True), response.text
    response = http.post("/v1/predict/batch", content=seven, headers={"Content-Type": "image/png"})
    assert response.status_code == 415


# -- the Open Inference Protocol


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    """NVIDIA's client, unchanged."""
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def file_input(*images: bytes) -> tritonclient.http.InferInput:
    given = tritonclient.http.InferInput("image", [len(images)], "BYTES")
    given.set_data_from_numpy(np.array(images, dtype=object))
    return given


def test_tritonclient_finds_out_what_is_served(
    triton: tritonclient.http.InferenceServerClient,
) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("lethe")
    assert triton.is_model_ready("lethe", "0")
    assert not triton.is_model_ready("lethe", "9")
    assert not triton.is_model_ready("other")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    described = triton.get_model_metadata("lethe")
    assert described["versions"] == ["0"]
    assert [each["name"] for each in described["inputs"]] == ["image", "pixels"]


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers_from_image_files(
    triton: tritonclient.http.InferenceServerClient, http: httpx.Client, seven: bytes, binary: bool
) -> None:
    wanted = [
        tritonclient.http.InferRequestedOutput("label", binary_data=binary),
        tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary),
        tritonclient.http.InferRequestedOutput("logits", binary_data=binary, class_count=2),
    ]
    found = triton.infer("lethe", [file_input(seven, seven)], outputs=wanted, request_id="mine")
    assert found.get_response()["id"] == "mine"
    assert found.get_response()["model_version"] == "0"
    assert [each if binary is False else each.decode() for each in found.as_numpy("label")] == [
        "7",
        "7",
    ]
    headers = {"Content-Type": "image/png"}
    ours = http.post("/v1/predict?top_k=1", content=seven, headers=headers).json()
    shares = found.as_numpy("probabilities")
    assert shares.shape == (2, 10)
    assert shares[0].max() == pytest.approx(ours["predictions"][0]["probability"], abs=1e-5)
    top = found.as_numpy("logits")
    assert top.shape == (2, 2)
    assert str(top[0, 0]).strip("b'").endswith(":7:7")


def test_tritonclient_infers_from_pixels(
    triton: tritonclient.http.InferenceServerClient, server: Server, seven: bytes
) -> None:
    backbone = open_backbone(load_settings(server.config))
    image = Image.open(io.BytesIO(seven))
    pixels = transform(backbone.spec.preprocess)(image).unsqueeze(0).numpy()
    given = tritonclient.http.InferInput("pixels", list(pixels.shape), "FP32")
    for binary in (True, False):
        given.set_data_from_numpy(pixels, binary_data=binary)
        found = triton.infer("lethe", [given])
        assert found.as_numpy("label")[0] == b"7"
    by_file = triton.infer("lethe", [file_input(seven)], model_version="0")
    np.testing.assert_allclose(
        found.as_numpy("probabilities"), by_file.as_numpy("probabilities"), atol=1e-5
    )


def test_tritonclient_is_told_what_was_wrong(
    triton: tritonclient.http.InferenceServerClient, seven: bytes
) -> None:
    small = tritonclient.http.InferInput("pixels", [1, 3, 2, 2], "FP32")
    small.set_data_from_numpy(np.zeros((1, 3, 2, 2), np.float32))
    good = file_input(seven)
    for model, version, given, status, words in (
        ("lethe", "", small, "400", "the model takes"),
        ("lethe", "", file_input(b"no image"), "422", "not an image"),
        ("lethe", "3", good, "404", "release 3 does not serve"),
        ("lethe", "new", good, "404", "no release's number"),
        ("other", "", good, "404", "no model 'other'"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            triton.infer(model, [given], model_version=version)
        assert caught.value.status() == status


def test_no_path_or_address_that_a_client_gives_is_ever_opened(
    http: httpx.Client, operations: httpx.Client, server: Server, tmp_path: Path
) -> None:
    """Sends paths and URLs in every text of a request. The test watches the server's files, and
    listens at the URLs."""
    bait = tmp_path / "bait.png"
    bait.write_bytes(b"bait")
    os.utime(bait, (1, 1))
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/bait.png"
        operator = {"Authorization": f"Bearer {server.operator_token}"}
        for where in (str(bait), f"file://{bait}", address, f"../../../../..{bait}"):
            encoded = base64.b64encode(where.encode()).decode()
            tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
            for client, method, path, request in (
                (http, "POST", "/v1/predict", {"json": {"image": where}}),
                (http, "POST", "/v1/predict", {"json": {"image": encoded}}),
                (http, "POST", "/v1/predict", {"content": where.encode()}),
                (http, "POST", "/v1/predict", {"files": {"image": (where, where.encode())}}),
                (http, "POST", "/v1/predict/batch", {"files": {"images": (where, b"x")}}),
                (http, "POST", "/v2/models/lethe/infer", {"json": {"inputs": [tensor]}}),
                (http, "GET", f"/v2/models/{where}", {}),
                (operations, "GET", f"/console/{where}", {}),
                (operations, "GET", f"/v1/jobs/{where}", {"headers": operator}),
                (operations, "GET", f"/v1/audit/{where}", {"headers": operator}),
                (
                    operations,
                    "POST",
                    "/v1/forget",
                    {"headers": operator, "json": {"classes": ["7"], "images": {"7": [encoded]}}},
                ),
            ):
                response = client.request(method, path, **request)
                assert response.status_code < 500, response.text
                assert b"bait" not in response.content.replace(where.encode(), b"")
        with pytest.raises(TimeoutError):
            trap.accept()
    # If it were read, its access time would be newer than its change time (relatime).
    assert bait.stat().st_atime == 1


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
        assert took < 5
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
