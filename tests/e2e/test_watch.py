"""Canary classes, probed through a real server, and what a server does unasked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forgetting.data import open_image_set
from serving.top import Look, look
from serving.traffic import audit, held_out
from tests.e2e.conftest import Server
from tests.e2e.test_prometheus import record_an_adapter_that_forgets_nothing

WAIT_S = 60.0
CANARIES = ("8", "3")
LAX = """
[forget.gates]  # what is forgotten how well is for other tests
probe = 1.0
prototypes = 1.0
"""


def settings(images: Path, posture: str) -> str:
    return f"""
replicas = 1
[monitor]
posture = "{posture}"
share = 1.0
[probes]
classes = ["8", "3"]
images = "{images}"
per_minute = 1200
[reactions]
leak = true
drift = true
{LAX}"""


def page(server: Server) -> Look:
    with server.client() as client:
        return look(client.metrics(), at=time.monotonic())


def wait_until(server: Server, holds: Callable[[Look], bool]) -> Look:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        now = page(server)
        if holds(now):
            return now
        time.sleep(0.5)
    raise AssertionError(f"it never came to that; last: {dict(page(server).samples)}")


def probed(now: Look, outcome: str) -> float:
    return now.total("lethe_probes_total", outcome=outcome)


def evidence(now: Look, source: str) -> float:
    found = now.gauge("lethe_leak_evidence_log10", source=source)
    assert found is not None
    return found


@pytest.mark.slow
def test_probes_prove_a_leak_and_drift_is_rolled_back_without_anybody_asking(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    digits = open_image_set("digits")
    for number, (name, png) in enumerate(held_out(digits, CANARIES)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.png").write_bytes(png)
    server = make_server(settings(tmp_path, "canary")).start()

    # Before anything is forgotten probes are no trials; afterwards they are, and all is quiet.
    waiting = wait_until(server, lambda now: probed(now, "waiting") >= 5)
    assert probed(waiting, "quiet") == 0
    with server.client() as client:
        done = client.wait(client.forget(["8"])["job"])
        assert done["state"] == "done", done["refused"]
    quiet = wait_until(server, lambda now: probed(now, "quiet") >= 40)
    assert probed(quiet, "exposed") == probed(quiet, "failed") == 0
    assert evidence(quiet, "canary") < 1
    assert quiet.total("lethe_shadow_samples_total") == 0, "the posture is canary"
    assert quiet.chosen("lethe_monitor_blind", "reason") is None
    assert quiet.gauge("lethe_canary_classes_forgotten") == 1

    # Weights that are recorded as having forgotten a class and have not.
    assert server.stop() == 0
    record_an_adapter_that_forgets_nothing(server, "3")
    server.start()
    leaking = wait_until(server, lambda now: evidence(now, "canary") >= 3)
    assert probed(leaking, "exposed") == 0, "masked all the same"
    assert evidence(leaking, "shadow") == 0
    shown = server.lethe("top", "--once").stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("canary leak, evidence")]
    assert "alert" in line
    wait_until(server, lambda now: now.total("lethe_reactions_total", reaction="leak") == 1)
    told = server.lethe("log").stdout
    assert told.count("leak proven") == 1, told

    # A release that harms everyone else: it goes, and what it was to forget stays masked.
    assert server.stop() == 0
    record_an_adapter_that_forgets_nothing(server, "5", strength=40.0)
    server.config.write_text(
        server.config.read_text().replace('posture = "canary"', 'posture = "shadow"')
    )
    server.start()
    with server.client() as client:
        before = client.releases()
        deadline = time.monotonic() + WAIT_S
        while client.status()["release"] == before[-1]["release"]:
            audit(server.url, server.auditor_token, held_out(digits))
            assert time.monotonic() < deadline, page(server).samples
        newest = client.releases()[-1]
        assert (newest["kind"], newest["actor"]) == ("rollback", "monitor")
        assert newest["rolled_back_to"] == before[-1]["parent"]
        assert newest["adapters"] == before[-2]["adapters"]
        assert set(newest["masked"]) == {"8", "3", "5"}
        for _ in range(2):
            audit(server.url, server.auditor_token, held_out(digits))
        time.sleep(5)
        assert client.status()["release"] == newest["release"], "it goes back once"
    assert "drift proven" in server.lethe("log").stdout
    assert server.lethe("verify").returncode == 0
    assert server.stop() == 0
