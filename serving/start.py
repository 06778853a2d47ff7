"""Bring the whole thing up on this machine, and down again."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import LoggingConfig

from serving.app import NAME, NAMESPACE, application
from serving.settings import Settings

OBJECT_STORE_BYTES = 200 * 2**20


class StartError(Exception):
    """The server can't start here; the message says why."""


def check_ports(settings: Settings) -> None:
    """Raises `StartError` when somebody listens on one of the ports already."""
    _check_port(settings.host, settings.port, "another --port")
    _check_port(settings.operator.host, settings.operator_port, "another operator.port")


def _check_port(host: str, port: int, otherwise: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"can't listen on {host}:{port} ({error.strerror}): stop what runs there, or "
                f"choose {otherwise}"
            ) from None


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """The application, on a Ray of its own on this machine, serves inside the block.

    Raises as `serving.app.prepare`, and `StartError` when the replicas don't come up.
    """
    _keep_token_private()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        "local",  # never somebody else's cluster that happens to run here
        num_cpus=(os.cpu_count() or 1) + math.ceil(settings.replicas * settings.replica_cpus),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
        _metrics_export_port=(
            settings.monitor.ray_metrics_port if settings.monitor.ray_metrics else None
        ),
    )
    try:
        _keep_token_private()
        serve.start(
            http_options={"host": settings.host, "port": settings.port},
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
        try:
            serve.run(application(settings), name=NAME, route_prefix="/")
        except (RuntimeError, RayError) as error:
            raise StartError(f"the application did not come up: {error}") from None
        yield
    finally:
        # Serve's controller is killed while it answers, which Ray reports on stdout as an error.
        with contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()
            ray.shutdown()


def interrupted() -> threading.Event:
    """An event that SIGINT and SIGTERM set. Ask for it inside `running`: Ray sets its own handlers,
    which end the process without ending the replicas in order."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _keep_token_private() -> None:
    """Ray leaves the cluster's token readable by everyone on the machine."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(FileNotFoundError):
        token.chmod(0o600)
