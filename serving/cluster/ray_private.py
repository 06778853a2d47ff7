"""All that we use of Ray although Ray does not promise to keep it.

Environment variables, private arguments, options of its C++ processes, the text of an error, paths
and names. Most of them fail without a word when another Ray calls them something else, so
`tests/unit/serving/cluster/test_ray_private.py` looks each of them up in the installed Ray. The
text of HAProxy's configuration is the one exception: `haproxy_start.py` holds it, because it runs
without this package, and `tests/unit/serving/cluster/test_ingress.py` checks it against what Ray
writes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import ray

from serving.errors import ServingError


class Variable(StrEnum):
    """Environment variables that Ray's processes read when they start. `HAPROXY_*` and those below
    them are Serve's, and count only where its HAProxy takes the requests."""

    REPORTER_INTERVAL_MS = "REPORTER_UPDATE_INTERVAL_MS"
    """Between two looks of Ray's agent at the machine; 5,000 by default."""
    SERVE_METRICS_INTERVAL_MS = "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS"
    """Between two counts of Serve's own metrics; 100 by default."""

    ENABLE_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
    """1: HAProxy takes the requests, not the Python proxy."""
    HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
    """The program that is started as HAProxy."""
    HAPROXY_CONFIG = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
    """The file that Serve writes HAProxy's configuration to."""
    HAPROXY_ADMIN_SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"
    HAPROXY_STATE_FOLDER = "RAY_SERVE_HAPROXY_SERVER_STATE_BASE"
    HAPROXY_STATE_FILE = "RAY_SERVE_HAPROXY_SERVER_STATE_FILE"
    HAPROXY_METRICS_SOCKET = "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"
    HAPROXY_METRICS = "RAY_SERVE_HAPROXY_METRICS_ENABLED"
    """0: Serve makes no metrics of the lines that HAProxy would log about each request."""
    HAPROXY_THREADS = "RAY_SERVE_HAPROXY_NBTHREAD"
    HAPROXY_RETRY_ON = "RAY_SERVE_HAPROXY_RETRY_ON"
    """The failures after which HAProxy sends a request to another replica, as its `retry-on`."""
    HAPROXY_BUFFER_BYTES = "RAY_SERVE_HAPROXY_TUNE_BUFSIZE"
    HAPROXY_CHECK_INTERVAL = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
    """Between two health checks of a replica, with a unit, as in `1s`."""
    DRAINING_S = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
    """How long at least a replica that stops goes on answering behind HAProxy."""
    SEPARATE_THREAD = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
    """0: a replica runs our code in the event loop that takes the requests."""
    FALLBACK_HTTP_PORT = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
    """Of the Python proxy that the head node runs beside HAProxy."""
    FALLBACK_GRPC_PORT = "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"


UNEXPORTED: Mapping[str, str] = {
    Variable.REPORTER_INTERVAL_MS: "60000",
    Variable.SERVE_METRICS_INTERVAL_MS: "10000",
}
"""For a Ray whose own metrics nobody reads. With Ray's defaults its processes took a quarter of a
core from the replicas."""

LOGGER_OF_SERVE = "ray.serve"
LOGGER_OF_RAY = "ray"

STARTUP_TIMED_OUT = "timed out during startup"
"""Part of what `ray.init` says when one of Ray's processes was too slow to start. It raises a bare
`Exception`, so the text is all that tells this error from others."""


class NodeTimeoutError(ServingError):
    """Ray gave up waiting for its own processes. It may succeed when it is tried again."""


def init_options(*, cpus: int, namespace: str, metrics_port: int | None) -> dict[str, Any]:
    """The keyword arguments of `ray.init`; see `start_node`."""
    exported = metrics_port is not None
    return {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": 200 * 2**20,  # bytes
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": namespace,
        "_system_config": {
            # Ray gives its workers `nice` 15, so all else on the machine would go before them.
            "worker_niceness": 0,
            # A list of every call, which only Ray's dashboard shows.
            "task_events_report_interval_ms": 0,
            "enable_metrics_collection": exported,
        },
        "_metrics_export_port": metrics_port,
    }


def start_node(*, cpus: int, namespace: str, metrics_port: int | None) -> None:
    """Start a Ray on this machine for this process alone, and connect to it.

    `cpus`: how many Ray may give to actors, logical ones. `metrics_port`: where Ray exports its own
    metrics; None: it collects none.
    Raises `NodeTimeoutError`, and what `ray.init` raises otherwise.
    """
    options = init_options(cpus=cpus, namespace=namespace, metrics_port=metrics_port)
    try:
        ray.init("local", **options)  # "local": never a cluster of somebody else that runs here
    except Exception as error:
        if STARTUP_TIMED_OUT in str(error):
            raise NodeTimeoutError(str(error)) from error
        raise


def token_file() -> Path:
    """The file in which Ray keeps the token of every cluster that this user starts."""
    return Path.home() / ".ray" / "auth_token"


def keep_token_private() -> None:
    """Let only the user read the token, also the one that Ray is about to make.

    Ray writes it for everybody on the machine to read. It counts an empty file as no token, and
    keeps the mode of the file that it writes to.
    """
    file = token_file()
    with contextlib.suppress(OSError):  # if Ray needs the file, it will say so itself
        file.parent.mkdir(exist_ok=True)
        file.touch(0o600)
    if file.is_file():
        file.chmod(0o600)


def node_log() -> Path:
    """The log of the node that was started last: it says why Ray did not start."""
    root = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    return Path(root) / "ray" / "session_latest" / "logs" / "raylet.out"
