"""Bring the whole thing up on this machine, and down again."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from serving.app import NAME, NAMESPACE, application
from serving.settings import Settings

OBJECT_STORE_BYTES = 200 * 2**20
SPARE_CPUS = 4


class StartError(Exception):
    """The server can't start here; the message says why."""


def check_port(settings: Settings) -> None:
    """Raises `StartError` when somebody listens on the port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartError(
                f"can't listen on {settings.host}:{settings.port} ({error.strerror}): stop what "
                "runs there, or choose another --port"
            ) from None


def connect_ray(settings: Settings) -> None:
    """Start Ray for this process alone: no dashboard, nothing on other interfaces."""
    _keep_token_private()
    ray.init(
        num_cpus=max(os.cpu_count() or 1, int(settings.replicas * settings.replica_cpus) + 1)
        + SPARE_CPUS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
    )
    _keep_token_private()


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """The application serves inside the block. Ray must be connected.

    Raises as `serving.app.prepare`, and `StartError` when the replicas don't come up.
    """
    serve.start(
        http_options={"host": settings.host, "port": settings.port},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    try:
        try:
            serve.run(application(settings), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise StartError(f"the replicas did not come up: {error}") from None
        yield
    finally:
        serve.shutdown()


def _keep_token_private() -> None:
    """Ray leaves the cluster's token readable by everyone on the machine."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(FileNotFoundError):
        token.chmod(0o600)
