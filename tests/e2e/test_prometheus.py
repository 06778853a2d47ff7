"""A real Prometheus scrapes a real server: no alert while forgetting holds, and one when not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from forgetting.adapter.low_rank import from_files, to_files
from forgetting.data.sources import open_image_set
from registry.log.adapters import adapter_files
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release
from serving.config.backbones import open_backbone
from serving.config.home import home_of, open_ledger, open_subjects, signer
from serving.config.sources import load_settings
from serving.loadgen.traffic import audit, held_out
from tests.e2e.conftest import Server
from tests.ports import free_port

ALERT = "ForgottenClassRecognised"
WAIT_S = 90.0


class Prometheus:
    """A Prometheus with this project's rules that scrapes and evaluates every second."""

    def __init__(
        self,
        binary: str,
        folder: Path,
        *,
        deploy: Path,
        target: str,
        relabelling: Sequence[dict[str, Any]] = (),
    ) -> None:
        config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(deploy / "prometheus" / "rules" / "*.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        config["scrape_configs"][0]["metric_relabel_configs"] = list(relabelling)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False)
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        response = self._api.get("/query", params={"query": expression})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        (sample,) = self.query(expression)
        return float(sample["value"][1])

    def wait_until(self, expression: str) -> None:
        """Wait until `expression` has a result. Fails with the server's log after some time."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if self.query(expression):
                    return
            except httpx.TransportError:
                pass  # Prometheus is still starting
            time.sleep(0.5)
        raise AssertionError(f"{expression} never had a result:\n{self.log.read_text()[-3000:]}")

    def firing(self) -> set[str]:
        return {
            sample["metric"]["alertname"] for sample in self.query('ALERTS{alertstate="firing"}')
        }

    def stop(self) -> None:
        self._api.close()
        self._process.terminate()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def prometheus_binary(project_root: Path) -> str:
    unpacked = project_root / ".venv" / "prometheus" / "usr" / "bin" / "prometheus"
    found = shutil.which("prometheus") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        reason = "prometheus is neither on the PATH nor unpacked by `make promtool`"
        if os.environ.get("LETHE_REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"{reason}, and LETHE_REQUIRE_PROMTOOL=1")
        pytest.skip(reason)
    return found


@pytest.fixture
def running(make_server: Callable[..., Server]) -> Server:
    return make_server("[monitor]\nshare = 1.0\n").start()


@pytest.fixture
def prometheus(
    prometheus_binary: str, project_root: Path, running: Server, tmp_path: Path
) -> Iterator[Prometheus]:
    started = Prometheus(
        prometheus_binary,
        tmp_path,
        deploy=project_root / "deploy",
        target=f"127.0.0.1:{running.port}",
    )
    yield started
    started.stop()


def record_an_adapter_that_forgets_nothing(server: Server, name: str) -> None:
    """While the server is stopped, use its keys to put the class `name` under erasure and to record
    an adapter as having forgotten it. The adapter is a copy of another class's, scaled down so that
    it changes nothing. All signatures and digests are right, but the weights are not."""
    settings = load_settings(server.config, home=server.home)  # not the caller's LETHE_HOME
    home = home_of(settings)
    ledger, backbone = open_ledger(home), open_backbone(settings)
    operator, publisher = signer(home, "operator"), signer(home, "publisher")
    said = {"actor": "test", "reason": "", "request_id": f"behind-the-back-{name}"}
    subject = open_subjects(home).assign(name)
    stack = ledger.refresh().active_release.adapters
    job = request_forget(
        ledger, operator, subjects=[subject], backbone=backbone.fingerprint, **said
    )
    real = from_files(adapter_files(ledger, stack[0]), backbone)
    wrong = replace(
        real,
        pairs={path: (a, b * 1e-6) for path, (a, b) in real.pairs.items()},
        facts=replace(real.facts, stack=stack, subjects=(subject,)),
    )
    record_trained(
        ledger,
        publisher,
        job=job.id,
        files=to_files(wrong),
        stack=stack,
        report=b'{"acc_f_after": {"value": 0.0, "n": 36}}',
        **said,
    )
    release = publish_release(ledger, publisher, kind="adapter", job=job.id, **said)
    activate_release(ledger, operator, release=release.number, **said)


@pytest.mark.slow
def test_the_alert_is_silent_while_forgetting_holds_and_fires_when_the_weights_still_know(
    running: Server, prometheus: Prometheus
) -> None:
    images = open_image_set("digits")
    with running.client() as client:
        done = client.wait(client.forget(["8"])["job"])
        assert done["state"] == "done", done["refused"]
        for _ in range(2):
            audit(running.url, running.auditor_token, held_out(images))
        matched = "sum(lethe_shadow_matches_total)"
        prometheus.wait_until(f"{matched} >= 50")
        prometheus.wait_until(f"lethe_active_release == {done['release']}")
        time.sleep(3)  # three more evaluations
        assert prometheus.value("max(lethe_leak_evidence_log10)") < 1
        assert prometheus.value('max(lethe_leak_upper_bound_ratio{source="shadow"})') < 0.15
        assert prometheus.query(f'max_over_time(ALERTS{{alertname="{ALERT}"}}[10m])') == []
        assert not prometheus.firing()

    assert running.stop() == 0
    record_an_adapter_that_forgets_nothing(running, "3")
    running.start()
    answers = audit(running.url, running.auditor_token, held_out(images, ["3"]))
    assert all(answer.ok and answer.named != "3" for answer in answers), "masked all the same"
    prometheus.wait_until(f'ALERTS{{alertname="{ALERT}", alertstate="firing"}}')
    assert prometheus.firing() <= {ALERT, "LeakSuspected"}

    # After a restart without any request, the page still shows what was proven.
    assert running.stop() == 0
    running.start()
    shown = running.lethe("top", "--once")
    assert shown.returncode == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("leak, evidence")]
    assert "alert" in line
    assert running.stop() == 0
