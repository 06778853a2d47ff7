"""Canary classes are probed through a real server, and a server reacts by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, to_files
from forgetting.data.sources import open_image_set
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release
from serving.app import prepare
from serving.config.home import home_of, open_ledger, open_subjects, signer
from serving.config.sources import load_settings
from serving.loadgen.traffic import audit, held_out
from serving.monitoring.metrics_page import Look, look
from tests.e2e.conftest import Server
from tests.e2e.test_prometheus import record_an_adapter_that_forgets_nothing

WAIT_S = 60.0
CANARIES = ("8", "3")
LAX = """
[forget.gates]  # what is forgotten how well is for other tests
probe = 1.0
prototypes = 1.0
"""


def settings(images: Path) -> str:
    return f"""
replicas = 1
[monitor]
posture = "canary"
share = 1.0
[probes]
classes = ["8", "3"]
images = "{images}"
per_minute = 1200
[reactions]
leak = true
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
    """The evidence on the metrics page; NaN before a replica has reported."""
    found = now.gauge("lethe_leak_evidence_log10", source=source)
    return math.nan if found is None else found


@pytest.mark.slow
def test_probes_are_quiet_while_a_canary_class_is_forgotten_and_prove_when_it_is_not(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    digits = open_image_set("digits")
    for number, (name, png) in enumerate(held_out(digits, CANARIES)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.png").write_bytes(png)
    server = make_server(settings(tmp_path)).start()

    # Before a class is forgotten, probes count as waiting; after that, as quiet.
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

    # The ledger says that these weights have forgotten a class, but they have not.
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
    assert server.stop() == 0


def record_an_adapter_that_harms_everyone(server: Server, name: str) -> None:
    """Before the server runs, use its keys to publish and activate an adapter for forgetting the
    class `name`. It is noise in one block's weights, so it harms all classes."""
    chosen = load_settings(server.config, home=server.home)  # not the caller's LETHE_HOME
    backbone = prepare(chosen)
    home = home_of(chosen)
    ledger = open_ledger(home)
    ledger.refresh()
    operator, publisher = signer(home, "operator"), signer(home, "publisher")
    said = {"actor": "test", "reason": "", "request_id": f"behind-the-back-{name}"}
    subject = open_subjects(home).assign(name)
    job = request_forget(
        ledger, operator, subjects=[subject], backbone=backbone.fingerprint, **said
    )
    out, width = backbone.model.get_parameter("blocks.4.mlp.fc1.weight").shape
    noise = torch.Generator().manual_seed(0)
    harmful = Adapter(
        {
            "blocks.4.mlp.fc1": (
                torch.randn(4, width, generator=noise),
                torch.randn(out, 4, generator=noise),
            )
        },
        AdapterFacts(
            backbone=backbone.fingerprint,
            stack=(),
            subjects=(subject,),
            method="noise",
            config={},
            seed=0,
            steps=1,
            data_digest=f"sha256:{'0' * 64}",
            code_version="0",
            groups_kept=1,
            groups_total=6,
        ),
    )
    record_trained(
        ledger,
        publisher,
        job=job.id,
        files=to_files(harmful),
        stack=(),
        report=b'{"acc_f_after": {"value": 0.0, "n": 36}}',
        **said,
    )
    release = publish_release(ledger, publisher, kind="adapter", job=job.id, **said)
    activate_release(ledger, operator, release=release.number, **said)


@pytest.mark.slow
def test_a_release_that_harms_everyone_goes_by_itself_once_and_the_mask_stays(
    make_server: Callable[..., Server],
) -> None:
    digits = held_out(open_image_set("digits"))
    server = make_server("replicas = 1\n[monitor]\nshare = 1.0\n[reactions]\ndrift = true\n")
    record_an_adapter_that_harms_everyone(server, "5")
    server.start()
    with server.client() as client:
        deadline = time.monotonic() + WAIT_S
        while client.status()["release"] == 1:
            audit(server.url, server.auditor_token, digits)
            assert time.monotonic() < deadline, page(server).samples
        newest = client.releases()[-1]
        assert (newest["kind"], newest["actor"]) == ("rollback", "monitor")
        assert newest["rolled_back_to"] == 0
        assert newest["masked"] == ["5"], "nobody is brought back"
        again = audit(server.url, server.auditor_token, digits)
        assert all(answer.ok and answer.named != "5" for answer in again)

        # When an operator serves that release again, the server doesn't roll it back.
        back = client.rollback(1, reason="accepted")
        for _ in range(2):
            audit(server.url, server.auditor_token, digits)
        time.sleep(5)
        assert client.status()["release"] == back["release"]
    told = server.lethe("log").stdout
    assert told.count("drift proven") >= 1, told
    assert server.lethe("verify").returncode == 0
    assert server.stop() == 0
