"""`serve deploy deploy/serve.yaml` on a real Ray cluster that `lethe serve` didn't start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from forgetting.data.sources import open_image_set
from serving.client import Client, ClientError, InferenceClient
from serving.config.home import Home, token
from serving.loadgen.traffic import held_out
from tests.ports import free_port

BIN = Path(sys.executable).parent
START_S = 120.0
DEPLOY_S = 180.0
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
    "metrics-export-port",
)


class Cluster:
    """A one-node Ray cluster with ports and a folder of its own, on loopback."""

    def __init__(self) -> None:
        # Not in pytest's folder: paths of sockets have at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="lethe-", dir="/tmp"))
        self.ports = {name: free_port() for name in PORTS}
        self.dashboard = f"http://127.0.0.1:{self.ports['dashboard-port']}"
        self.log = self.folder / "start.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Without LETHE_* variables, so that the settings come from the file alone.
        The cluster's processes are found by RAY_TMPDIR in their environment."""
        ours = {n: v for n, v in os.environ.items() if not n.startswith(("LETHE_", "RAY_"))}
        ray = {"RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "disabled"}
        return {**ours, **ray, "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        ports = [f"--{name}={port}" for name, port in self.ports.items()]
        local = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        size = ["--num-cpus=8", f"--object-store-memory={200 * 2**20}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats"]
                + [f"--temp-dir={self.folder}", *local, *size, *ports],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while self.serve("status").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"ray start failed:\n{self.log.read_text()}")
            time.sleep(0.5)

    def serve(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Ray's own `serve` command against this cluster."""
        return subprocess.run(
            [BIN / "serve", command, "--address", self.dashboard, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def end(self) -> None:
        """Kill this cluster's processes and no other's: `ray stop` would end every Ray here."""
        while running := list(self._processes()):
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        if self._process is not None:
            self._process.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> Iterator[int]:
        mark = f"RAY_TMPDIR={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:
                continue


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, digits_backbones: Path) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copytree(digits_backbones, folder / "backbones")
    return folder


def deploy_file(project_root: Path, home: Path, port: int, operator_port: int) -> Path:
    """deploy/serve.yaml with this test's ports and settings file; the rest is as it ships."""
    deploy: dict[str, Any] = yaml.safe_load((project_root / "deploy" / "serve.yaml").read_text())
    config = home / "lethe.toml"
    # One replica, as the file says; the default is two.
    config.write_text(f"home = '{home}'\nreplicas = 1\noperator.port = {operator_port}\n")
    deploy["http_options"] = {"host": "127.0.0.1", "port": port}
    deploy["applications"][0]["args"]["config"] = str(config)
    path = home / "serve.yaml"
    path.write_text(yaml.safe_dump(deploy))
    return path


def wait_until_ready(client: InferenceClient, cluster: Cluster) -> None:
    deadline = time.monotonic() + DEPLOY_S
    while not client.ready():
        status = cluster.serve("status").stdout
        assert "DEPLOY_FAILED" not in status, status
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


@pytest.mark.slow
def test_serve_deploy_brings_up_the_application_that_the_settings_file_names(
    cluster: Cluster, home: Path, project_root: Path
) -> None:
    port, operator_port = free_port(), free_port()
    deployed = cluster.serve("deploy", deploy_file(project_root, home, port, operator_port))
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    with InferenceClient(f"http://127.0.0.1:{port}") as client:
        wait_until_ready(client, cluster)
        seven = held_out(open_image_set("digits"), ["7"])[0][1]
        answer = client.predict(seven, content_type="image/png")
        assert answer["predictions"][0]["label"] == "7"
        assert answer["release"] == 0
        page = {f.name: f for f in text_string_to_metric_families(client.metrics())}
        assert [s.value for s in page["lethe_replicas"].samples] == [1]
        assert len(page["lethe_release"].samples) == 1
    commands = f"http://127.0.0.1:{operator_port}"
    with (
        Client(commands) as nobody,
        pytest.raises(ClientError, match="operator's bearer token"),
    ):
        nobody.status()
    operator = token(Home(home, home / "registry"), "operator")
    with Client(commands, operator) as client:
        assert [(r["release"], r["behind"]) for r in client.status()["replicas"].values()] == [
            (0, False)
        ]
