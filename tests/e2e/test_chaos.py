"""The promises hold while processes are killed, frozen and cut off."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.client import Client, ClientError
from serving.loadgen.traffic import Traffic, stale
from tests.e2e.conftest import Server

LEASE_S = 10.0
SHORT_LEASE = f"[lease]\nseconds = {LEASE_S}\nmargin = 0.5\nheartbeat = 0.3\n"


@pytest.fixture(scope="module")
def running(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(SHORT_LEASE).start()
    with server.client() as client:
        done = client.wait(client.forget(["4"])["job"])
        assert done["state"] == "done", done["refused"]
    yield server
    assert server.stop() == 0


def replicas(status: dict[str, Any], release: int) -> set[int]:
    """Process ids of the replicas that run `release`. A replica's name begins with its id."""
    return {
        int(name.partition("-")[0])
        for name, member in status["replicas"].items()
        if member["release"] == release
    }


def wait_for_replicas(server: Server, count: int, release: int) -> set[int]:
    deadline = time.monotonic() + 90
    with server.client() as client:
        while time.monotonic() < deadline:
            alive = replicas(client.status(), release)
            alive = {pid for pid in alive if os.path.exists(f"/proc/{pid}")}
            if len(alive) == count:
                return alive
            time.sleep(0.3)
        raise AssertionError(f"not {count} replicas at release {release}: {client.status()}")


def test_a_killed_replica_comes_back_at_the_current_release(running: Server) -> None:
    with running.client() as client:
        release = client.status()["release"]
        victim = min(wait_for_replicas(running, 2, release))
        with Traffic(running.url, running.auditor_token, images="digits", rate=20) as traffic:
            traffic.wait_for(20)
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            ack = client.rollback(0)
            acknowledged = time.monotonic()
            back = wait_for_replicas(running, 2, ack["release"])
            traffic.wait_for(20)
    assert victim not in back
    # A dead process can't confirm, so the coordinator waits until its lease has run out.
    assert acknowledged - killed <= LEASE_S + 2
    assert stale(traffic.answers, [(acknowledged, ack["release"])]) == []
    # Requests that the killed process held are lost; none that was sent later is.
    lost = [a for a in traffic.answers if not a.ok]
    assert len(lost) <= 3, lost
    assert all(a.sent <= killed + 1 for a in lost), lost
    late = {a.replica for a in traffic.answers if a.sent > acknowledged and a.ok}
    assert {int(name.partition("-")[0]) for name in late} <= back
    assert all(a.named != "4" for a in traffic.answers if a.ok)


def test_a_frozen_replica_never_answers_from_the_old_release_when_it_thaws(
    running: Server,
) -> None:
    with running.client() as client:
        before = client.status()["release"]
        victim = min(wait_for_replicas(running, 2, before))
        with Traffic(running.url, running.auditor_token, images="digits", rate=20) as traffic:
            traffic.wait_for(20)
            os.kill(victim, signal.SIGSTOP)
            try:
                started = time.monotonic()
                # If the command reaches the frozen process, the client sends it again.
                with Client(running.operator_url, running.operator_token, timeout=8) as hasty:
                    job = hasty.forget(["9"], reason="while one replica is frozen")
                acknowledged = time.monotonic()
                guard = job["guard"]
                time.sleep(1)
            finally:
                os.kill(victim, signal.SIGCONT)
            thawed = time.monotonic()
            traffic.wait_for(60)
            client.wait(job["job"])
    assert "lease_expired" in guard["replicas"].values(), guard
    assert 1 < acknowledged - started <= LEASE_S + 20
    assert stale(traffic.answers, [(acknowledged, guard["release"])]) == []
    named = [a for a in traffic.answers if a.ok and a.sent > acknowledged and a.named == "9"]
    assert named == []
    # The thawed process may refuse the requests that it held, but must not answer them stale.
    refused = [a for a in traffic.answers if not a.ok]
    assert all(a.status in (503, 0) for a in refused), refused
    assert len(refused) <= 10, refused
    late = [a for a in traffic.answers if a.ok and a.got > thawed and a.sent < acknowledged]
    old = [a for a in late if a.release < guard["release"]]
    # Except a response whose lease was checked before the freeze and that was not sent yet.
    assert all(a.sent <= started for a in old), old
    assert len(old) <= 2, old


def test_a_killed_coordinator_forgets_nothing(running: Server) -> None:
    with (
        running.client() as client,
        Traffic(running.url, running.auditor_token, images="digits", rate=20) as traffic,
    ):
        before = client.status()["release"]
        wait_for_replicas(running, 2, before)
        traffic.wait_for(20)
        victim = running.process("ray::Coordinator")
        os.kill(victim, signal.SIGKILL)
        ack = client.rollback(0, reason="right after the coordinator was killed")
        acknowledged = time.monotonic()
        assert ack["release"] > before
        traffic.wait_for(60)
        assert running.process("ray::Coordinator") != victim
        assert client.status()["acknowledged"]
    assert [a for a in traffic.answers if not a.ok] == []
    assert stale(traffic.answers, [(acknowledged, ack["release"])]) == []


def test_a_killed_control_finishes_what_it_accepted(running: Server) -> None:
    with running.client() as client:
        job = client.forget(["0"])
        os.kill(running.process("ray::Control"), signal.SIGKILL)
        deadline = time.monotonic() + 120
        view, refused = job, []
        while view["state"] not in ("done", "refused") and time.monotonic() < deadline:
            time.sleep(1)
            try:
                view = client.job(job["job"])
            except ClientError as error:
                refused.append(str(error))
        assert view["state"] == "done", view["refused"]
        assert all("restarting" in words for words in refused), refused


def test_a_killed_trainer_starts_again(running: Server) -> None:
    with running.client() as client:
        job = client.forget(["1"])
        killed = False
        for view in client.watch(job["job"]):
            if view["state"] == "training":
                os.kill(running.process("ray::Trainer"), signal.SIGKILL)
                killed = True
                break
        assert killed
        done = client.wait(job["job"])
        assert done["state"] == "done", done["refused"]
