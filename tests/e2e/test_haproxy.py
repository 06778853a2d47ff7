"""Inference behind Serve's HAProxy keeps the promises, and avoids the traps of Serve's setup."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from forgetting.data.sources import open_image_set
from serving.cluster.ingress import haproxy_binary
from serving.loadgen.traffic import Traffic, held_out, stale
from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

RATE = 30.0
GUARDED = ("1", "4", "6")
STOP_S = 30.0
"""Seconds for a stop; with Serve's own defaults it takes longer."""


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server]) -> Server:
    return make_server("ingress = 'haproxy'\n").start()


def listening(pid: int) -> set[str]:
    """address:port of every TCP socket on which a process listens, in /proc's hexadecimal."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
        if found is not None:
            inodes.add(found[1])
    places = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                places.add(fields[1])
    return places


def haproxies(server: Server) -> list[int]:
    return server.processes(str(haproxy_binary()))


def test_haproxy_listens_on_the_port_of_inference_alone(server: Server) -> None:
    port = f"0100007F:{server.port:04X}"
    assert {place for pid in haproxies(server) for place in listening(pid)} == {port}
    for pid in server.processes("ray::ServeReplica"):
        # Ray also opens ports of its own, for calls of actors.
        served = {p for p in listening(pid) if 30000 <= int(p.rpartition(":")[2], 16) <= 31000}
        assert {p.rpartition(":")[0] for p in served} == {"0100007F"}


def test_bad_requests_are_refused_as_ever(server: Server) -> None:
    picture = held_out(open_image_set("digits"), ["7"])[0][1]
    image = {"Content-Type": "image/png"}
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        for body, headers, status in (
            (picture, image, 200),
            (picture, {**image, "Authorization": f"Bearer {server.auditor_token}"}, 200),
            (b"<html></html>", image, 422),
            (b"", image, 400),
            (picture[:60], image, 422),
            (b"\0" * (9 * 2**20), image, 413),
            (b"hello", {"Content-Type": "text/plain"}, 415),
            (picture, {**image, "X-Lethe-Min-Release": "99"}, 503),
            (picture, {**image, "X-Lethe-Deadline-Ms": "soon"}, 422),
            (picture, {**image, "X-Lethe-Release": "0"}, 401),
        ):
            response = http.post("/v1/predict", content=body, headers=headers)
            assert response.status_code == status, (headers, response.text)
            if status != 200:
                assert response.headers["content-type"] == "application/problem+json"


def test_guards_and_a_killed_replica_under_load_cost_no_request(server: Server) -> None:
    with (
        server.client() as client,
        Traffic(server.url, server.auditor_token, images="digits", rate=RATE) as traffic,
    ):
        traffic.wait_for(int(RATE))
        acks = []
        for name in GUARDED:
            job = client.forget([name], reason="test")
            acks.append((time.monotonic(), job["guard"]["release"]))
            client.cancel(job["job"], reason="test")
            traffic.wait_for(int(RATE))
        victim = server.processes("ray::ServeReplica")[0]
        os.kill(victim, signal.SIGKILL)
        job = client.forget(["8"], reason="test")
        acks.append((time.monotonic(), job["guard"]["release"]))
        client.cancel(job["job"], reason="test")
        deadline = time.monotonic() + 60
        while len({a.replica for a in traffic.answers[-40:]}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        traffic.wait_for(int(RATE) * 2)
    answers = traffic.answers
    assert [a for a in answers if not a.ok] == []
    assert stale(answers, acks) == []
    masked = [a for a in answers if a.sent > acks[-1][0] and a.label in (*GUARDED, "8")]
    assert masked
    assert all(a.named not in (*GUARDED, "8") for a in masked)


def test_without_a_replica_there_is_an_answer(server: Server) -> None:
    replicas = server.processes("ray::ServeReplica")
    for pid in replicas:
        os.kill(pid, signal.SIGKILL)
    # A replica that dies while it holds a request is another case: HAProxy ends that connection.
    psutil.wait_procs([psutil.Process(pid) for pid in replicas if psutil.pid_exists(pid)], 10)
    seen = set()
    deadline = time.monotonic() + 60
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        while 503 not in seen or http.get("/readyz").status_code != 200:
            response = http.get("/healthz")
            seen.add(response.status_code)
            if response.status_code == 503:
                assert response.json()["advice"] == "Ask again in a moment."
                assert response.headers["retry-after"] == "1"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert seen <= {200, 503}


def test_it_stops_soon_and_leaves_nothing(server: Server) -> None:
    (config,) = {
        argument
        for pid in haproxies(server)
        for argument in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if argument.endswith("haproxy.cfg")
    }
    folder = Path(config).parent.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < STOP_S
    assert haproxies(server) == []
    assert not folder.exists()
