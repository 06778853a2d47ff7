"""`lethe serve` on a registry in a bucket: a real S3 API, credentials from the environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import audit, held_out
from tests.e2e.conftest import Server
from tests.ports import free_port

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")

URL = "s3://bucket/lethe/registry"
# Other tests judge how well a class is forgotten.
LENIENT = "[forget.gates]\nprobe = 1.0\nprototypes = 1.0\n"


@pytest.fixture
def _bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while True:
        try:
            put = urllib.request.Request(f"{endpoint}/bucket", method="PUT", data=b"")
            urllib.request.urlopen(put).close()
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    for name, value in {
        "AWS_ENDPOINT": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    server.kill()
    server.wait(30)


@pytest.mark.slow
@pytest.mark.usefixtures("_bucket")
def test_a_registry_in_a_bucket_is_served_and_found_again_after_a_restart(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(f"registry = '{URL}'\n{LENIENT}").start()
    assert not (server.home / "registry").exists()
    pictures = held_out(open_image_set("digits"), ["1"])
    with server.client() as client:
        job = client.forget(["1"], reason="kept in a bucket")
        assert set(job["guard"]["replicas"].values()) == {"confirmed"}
        done = client.wait(job["job"])
        assert done["state"] == "done", done["refused"]
    assert server.stop() == 0
    server.start()
    with server.client() as client:
        status = client.status()
        assert (status["release"], status["forgotten_by_weights"]) == (done["release"], ["1"])
    answers = audit(server.url, server.auditor_token, pictures)
    assert [a for a in answers if not a.ok or "1" in (a.named, a.weights)] == []
    found = json.loads(server.lethe("verify", "--json").stdout)
    assert found["sound"]
    assert found["seq"] == status["registry_seq"]
    assert len(server.lethe("log").stdout.splitlines()) == found["seq"]
    assert server.stop() == 0
