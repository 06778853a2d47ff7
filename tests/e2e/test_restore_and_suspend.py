"""Restoring a class and suspending serving, over real HTTP and under traffic."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from forgetting.data.image_set import image, indices, png_bytes
from forgetting.data.sources import open_image_set
from serving.client import ClientError
from serving.loadgen.traffic import Traffic, audit, held_out
from tests.e2e.conftest import Server

SETTINGS = """
[lease]
seconds = 5.0
margin = 0.5
heartbeat = 0.3
[forget.gates]  # what is forgotten how well is for other tests
probe = 1.0
prototypes = 1.0
"""


@pytest.fixture(scope="module")
def running(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server(SETTINGS).start()
    yield server
    assert server.stop() == 0


def shares(server: Server, *classes: str) -> dict[str, tuple[float, float]]:
    """For each class, the shares of correct answers: after the mask, and before it."""
    answers = audit(
        server.url, server.auditor_token, held_out(open_image_set("digits"), list(classes))
    )
    assert all(a.ok for a in answers)
    found = {}
    for name in classes:
        own = [a for a in answers if a.label == name]
        named = sum(a.named == name for a in own) / len(own)
        found[name] = (named, sum(a.weights == name for a in own) / len(own))
    return found


def test_a_restored_class_is_recognised_again_and_who_was_learned_on_top_is_learned_anew(
    running: Server,
) -> None:
    digits = open_image_set("digits")
    own = indices(digits, "train", classes=["3"])
    with running.client() as client:
        for name, given in (("3", [png_bytes(image(digits, int(i))) for i in own[:5]]), ("8", [])):
            done = client.wait(client.forget([name], images={name: given} if given else {})["job"])
            assert done["state"] == "done", done["refused"]
            if given:
                assert client.report(done["job"])["images"]["forget_train"] == len(own) + 5
        assert max(map(max, shares(running, "3", "8").values())) <= 0.01
        with pytest.raises(ClientError, match="No erasure was ever requested"):
            client.restore("7", reason="a mistake")
        with Traffic(running.url, running.auditor_token, images="digits", rate=20) as traffic:
            traffic.wait_for(10)
            ack = client.restore("3", reason="the request was withdrawn", key="restore-3")
            traffic.wait_for(10)
        assert [a for a in traffic.answers if not a.ok] == []
        assert (ack["class"], ack["trained_again"], ack["still_masked"]) == ("3", ["8"], ["8"])
        # The same command again succeeds; another one has nothing left to end.
        assert client.restore("3", reason="the request was withdrawn", key="restore-3")["release"]
        with pytest.raises(ClientError, match="restored before"):
            client.restore(subject=ack["subject"], reason="once more")
        after = shares(running, "3", "8")
        assert min(after["3"]) >= 0.9
        assert after["8"][0] == 0
        states = {job["classes"][0]: job["state"] for job in client.status()["jobs"]}
        assert states["3"] == "restored"
        assert states["8"] in ("queued", "training", "published", "done")
        done = client.wait(client.status()["jobs"][-1]["job"])
        assert done["classes"] == ["8"]
        assert done["state"] == "done", done["refused"]
        again = shares(running, "3", "8")
        assert min(again["3"]) >= 0.9
        assert max(again["8"]) <= 0.01
    told = running.lethe("audit", ack["subject"]).stdout
    assert "the request was withdrawn" in told
    assert "restored" in told
    # No replica needs the class's name now, so everything about it may be deleted.
    kept = running.home / "registry" / "subjects" / ack["subject"] / "images"
    assert len(list(kept.iterdir())) == 5
    gone = running.lethe("tombstone", "3", "--reason", "and nothing is to be kept")
    assert gone.returncode == 0, gone.stderr
    assert "5 files were deleted, the id leads to no class any more" in gone.stdout
    assert list(kept.iterdir()) == []
    assert "tombstone" in running.lethe("audit", ack["subject"]).stdout
    assert running.lethe("verify").returncode == 0


def test_what_is_sent_with_a_forget_command_must_be_images_of_its_class(running: Server) -> None:
    scan = held_out(open_image_set("digits"), ["1"])[0][1]
    with running.client() as client:
        for images, words in (({"5": [b"no image"]}, "not an image"), ({"6": [scan]}, "'6'")):
            with pytest.raises(ClientError, match=words):
                client.forget(["5"], images=images)
        assert client.status()["under_erasure"] == ["8"]


def predict(server: Server) -> httpx.Response:
    image = held_out(open_image_set("digits"), ["1"])[0][1]
    return httpx.post(
        f"{server.url}/v1/predict",
        content=image,
        headers={"Content-Type": "image/png"},
        trust_env=False,
    )


def replica_names(server: Server) -> set[str]:
    with server.client() as client:
        status: dict[str, Any] = client.status()
    return set(status["replicas"])


def test_no_request_is_answered_while_serving_is_suspended(running: Server) -> None:
    with Traffic(running.url, running.auditor_token, images="digits", rate=40) as traffic:
        traffic.wait_for(40)
        suspending = time.monotonic()
        said = running.lethe("suspend", "--reason", "wrong data was found")
        suspended = time.monotonic()
        assert said.returncode == 0, said.stderr
        assert "nothing is answered any more: 2 replicas stopped" in said.stdout
        traffic.wait_for(40)
        refused = predict(running)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert "suspended" in refused.json()["detail"]
        assert "lethe resume" in refused.json()["advice"]
        ready = httpx.get(f"{running.url}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert "suspended" in ready.json()["detail"]
        # A replica and a coordinator that start while serving is suspended don't serve either.
        before = replica_names(running)
        os.kill(int(min(before).partition("-")[0]), signal.SIGKILL)
        os.kill(running.process("ray::Coordinator"), signal.SIGKILL)
        deadline = time.monotonic() + 90
        while len(replica_names(running) - before) < 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert replica_names(running) - before, "no replica came back"
        traffic.wait_for(80)
        assert "suspended" in running.lethe("status").stdout
        with running.client() as client, pytest.raises(ClientError, match="suspended"):
            client.rollback(0)
        resuming = time.monotonic()
        said = running.lethe("resume", "--reason", "it was a false alarm")
        resumed = time.monotonic()
        assert said.returncode == 0, said.stderr
        assert "2 replicas answer again" in said.stdout
        traffic.wait_for(160)  # four seconds of it
    answers = traffic.answers
    # No answer arrived after the acknowledgement, not even to earlier requests.
    assert [a for a in answers if a.ok and suspended < a.got < resuming] == []
    assert len([a for a in answers if a.status == 503 and a.sent > suspended]) >= 80
    assert [a for a in answers if a.ok and a.sent < suspending]
    late = [a for a in answers if a.sent > resumed + 1]
    assert len(late) >= 10
    assert [a for a in late if not a.ok] == []
    assert predict(running).status_code == 200
    assert httpx.get(f"{running.url}/readyz", trust_env=False).status_code == 200


@pytest.mark.slow
def test_a_server_that_starts_while_serving_is_suspended_waits_to_be_resumed(
    running: Server,
) -> None:
    with running.client() as client:
        client.suspend(reason="over night")
        client.suspend(reason="over night, said twice")
    assert running.stop() == 0
    running.start()
    with running.client() as client:
        assert client.status()["suspended"]
        assert predict(running).status_code == 503
        client.resume(reason="in the morning")
        assert predict(running).status_code == 200


@pytest.mark.slow
def test_what_is_sealed_is_served_as_a_backbone_that_never_knew_the_forgotten_class(
    running: Server, make_server: Callable[..., Server]
) -> None:
    before = shares(running, "8", "1")
    to = running.home / "sealed"
    said = running.lethe("seal", "--out", str(to), "--reason", "it is final")
    assert said.returncode == 0, said.stderr
    assert "9 classes, without 1 forgotten ones" in said.stdout
    # The running server goes on; nothing new can be recorded.
    assert predict(running).status_code == 200
    with running.client() as client, pytest.raises(ClientError, match="sealed"):
        client.forget(["2"])
    assert running.stop() == 0
    heir = make_server(f"[backbone]\ndirectory = '{to}'\n").start()
    after = shares(heir, "8", "1")
    assert after["8"] == (0, 0)
    assert after["1"] == pytest.approx(before["1"], abs=0.01)
    with heir.client() as client, pytest.raises(ClientError, match="has no class '8'"):
        client.forget(["8"])
    assert heir.stop() == 0
