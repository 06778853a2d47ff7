"""Clients that go away, deadlines that pass, the Open Inference Protocol over gRPC, and stopping.

The server waits long for a batch to fill, so that clients can go away and deadlines can pass
meanwhile. The gRPC client runs in a process of its own, like a client on another machine.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import held_out
from tests.e2e.conftest import Server
from tests.ports import free_port

WAIT_S = 0.8
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def patient(make_server: Callable[..., Server], grpc_port: int) -> Server:
    """One replica that waits long for a batch to fill."""
    return make_server(
        f"replicas = 1\ngrpc.port = {grpc_port}\n[batch]\nwait_ms = {WAIT_S * 1000}\nsize = 64\n"
    ).start()


@pytest.fixture(scope="module")
def seven() -> bytes:
    return held_out(open_image_set("digits"), ["7"])[0][1]


@pytest.fixture(scope="module")
def visitor(patient: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=patient.url, timeout=30, trust_env=False) as client:
        yield client


def computed(visitor: httpx.Client) -> tuple[float, float]:
    """(images that were classified, images that were skipped)."""
    families = text_string_to_metric_families(visitor.get("/metrics").text)
    found = {sample.name: sample.value for family in families for sample in family.samples}
    return found["lethe_images_total"], found["lethe_images_skipped_total"]


def test_what_a_client_that_has_gone_asked_is_not_computed(
    visitor: httpx.Client, patient: Server, seven: bytes
) -> None:
    before = computed(visitor)
    with socket.create_connection(("127.0.0.1", patient.port)) as client:
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(seven), seven)
        )
        time.sleep(WAIT_S / 3)  # the request is in the queue now
    time.sleep(WAIT_S * 1.5)
    assert computed(visitor)[0] == before[0]
    # A client that stays gets its answer, so the queue works.
    assert visitor.post("/v1/predict", content=seven, headers=PNG).status_code == 200
    assert computed(visitor)[0] == before[0] + 1


def test_what_waits_longer_than_its_deadline_is_not_computed(
    visitor: httpx.Client, seven: bytes
) -> None:
    before = computed(visitor)
    late = visitor.post(
        "/v1/predict", content=seven, headers={**PNG, "X-Lethe-Deadline-Ms": str(int(WAIT_S * 300))}
    )
    assert late.status_code == 504
    assert late.headers["content-type"] == "application/problem+json"
    after = computed(visitor)
    assert after == (before[0], before[1] + 1)
    assert (
        visitor.post("/v1/predict", headers={**PNG, "X-Lethe-Deadline-Ms": "0"}).status_code == 422
    )


GRPC_CLIENT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

def given(image):
    made = triton.InferInput("image", [1], "BYTES")
    made.set_data_from_numpy(np.array([image], dtype=object))
    return made

said = {}
image = open(sys.argv[2], "rb").read()
with triton.InferenceServerClient(sys.argv[1]) as client:
    said["live"] = client.is_server_live(), client.is_server_ready()
    said["ready"] = [client.is_model_ready(*m) for m in (("lethe",), ("lethe", "0"))]
    said["server"] = client.get_server_metadata(as_json=True)
    said["model"] = client.get_model_metadata("lethe", as_json=True)
    found = client.infer("lethe", [given(image)], request_id="mine", model_version="0")
    said["label"] = found.as_numpy("label")[0].decode()
    said["total"] = float(found.as_numpy("probabilities").sum())
    said["id"] = found.get_response().id
    top = triton.InferRequestedOutput("probabilities", class_count=2)
    said["top"] = [each.decode() for each in client.infer("lethe", [given(image)], outputs=[top]
        ).as_numpy("probabilities")[0]]
    pixels = triton.InferInput("pixels", [1, 3, 2, 2], "FP32")
    pixels.set_data_from_numpy(np.zeros((1, 3, 2, 2), np.float32))
    said["errors"] = []
    for model, version, asked, metadata in (
        ("lethe", "", pixels, {}),
        ("lethe", "", given(b"no image"), {}),
        ("lethe", "9", given(image), {}),
        ("other", "", given(image), {}),
        ("lethe", "", given(image), {"x-lethe-deadline-ms": "100"}),
    ):
        try:
            client.infer(model, [asked], model_version=version, headers=metadata)
        except InferenceServerException as error:
            said["errors"].append([error.status(), error.message()])
print(json.dumps(said))
"""


def test_tritonclient_infers_over_grpc(
    patient: Server, grpc_port: int, seven: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = tmp_path_factory.mktemp("grpc") / "seven.png"
    image.write_bytes(seven)
    ran = subprocess.run(
        [sys.executable, "-c", GRPC_CLIENT, f"127.0.0.1:{grpc_port}", str(image)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["live"], said["ready"]) == ([True, True], [True, True])
    assert said["server"]["name"] == "lethe"
    assert said["model"]["versions"] == ["0"]
    assert (said["label"], said["id"]) == ("7", "mine")
    assert said["total"] == pytest.approx(1, abs=1e-4)
    assert said["top"][0].endswith(":7:7")
    words = ["the model takes", "not an image", "release 9 does not", "no model", "deadline"]
    codes = ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "NOT_FOUND", "DEADLINE_EXCEEDED"]
    for (status, detail), code, word in zip(said["errors"], codes, words, strict=True):
        assert (status, word in detail) == (f"StatusCode.{code}", True), detail


def ask(server: Server, image: bytes) -> tuple[float, int, str]:
    """(when the request was sent, the status, the text). Status -1: nothing listened any more; 0:
    the connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = time.monotonic()
    try:
        connection.request("POST", "/v1/predict", image, PNG)
        sent = time.monotonic()
        answer = connection.getresponse()
        return sent, answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return sent, -1, ""
    except (OSError, http.client.HTTPException) as error:
        return sent, 0, repr(error)
    finally:
        connection.close()


def test_a_stop_finishes_what_is_in_flight(patient: Server, seven: bytes) -> None:
    """Stop under steady load, while many requests wait for their batch."""

    def ask_in_turn(number: int) -> tuple[float, int, str]:
        time.sleep(number * 0.02)
        return ask(patient, seven)

    with concurrent.futures.ThreadPoolExecutor(100) as threads:
        asked = [threads.submit(ask_in_turn, number) for number in range(100)]
        time.sleep(1.0)
        stopped = time.monotonic()
        patient.process_of_start.send_signal(signal.SIGTERM)
        answers = [each.result() for each in asked]
    assert patient.process_of_start.wait(timeout=60) == 0
    before = [answer for answer in answers if answer[0] < stopped]
    assert len(before) >= 20
    assert [answer for answer in before if answer[1] != 200] == []
    # Later requests are answered, refused with a reason, or find no listener; none gets a 500.
    assert {status for _, status, _ in answers} <= {200, 503, -1, 0}
