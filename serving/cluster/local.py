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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import LoggingConfig

from serving.cluster.actors import NAMESPACE
from serving.cluster.ingress import prepared, serve_host
from serving.config.settings import Settings
from serving.errors import ServingError

log = logging.getLogger(__name__)

NAME = "lethe"
"""Of the Serve application."""
DEPLOYMENT = "Recognizer"
"""Of the replicas, in that application."""

DRAIN_NOTICE_S = 0.5
"""What was on its way to a replica when the stop was asked for is there by then."""
FIND_S = 1.0
OBJECT_STORE_BYTES = 200 * 2**20
RAY_TRIES = 3
UNEXPORTED = {
    # Of the agent's looks at the machine; 5,000 by default.
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # Of Serve's own numbers; 100 by default.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
}
"""How often Ray's processes do what nobody here waits for, unless Ray's own metrics are exported.
With Ray's defaults all processes together took a quarter of a core from the replicas."""
KILLED_S = 5.0


class StartError(ServingError):
    """The server can't start here; the message says why."""


def check_ports(settings: Settings) -> None:
    """Raises `StartError` when somebody listens on one of the ports already."""
    _check_port(settings.host, settings.port, "another --port")
    if settings.grpc.port is not None:
        _check_port("", settings.grpc.port, "another grpc.port")
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
def running(
    settings: Settings,
    application: Callable[[], serve.Application],
    *,
    servicers: Sequence[str],
) -> Iterator[None]:
    """What `application` builds, on a Ray of its own on this machine, serves inside the block.

    `servicers`: the import paths of what Serve's gRPC proxy calls, where the settings ask for gRPC.
    Raises as `application`, `StartError` when Ray or the replicas don't come up, and
    `IngressError`.
    """
    with prepared(settings):
        yield from _run(settings, application, servicers)


def _run(
    settings: Settings, application: Callable[[], serve.Application], servicers: Sequence[str]
) -> Iterator[None]:
    _keep_token_private()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _start_ray(settings)
    try:
        _keep_token_private()
        serve.start(
            http_options={"host": serve_host(settings), "port": settings.port},
            grpc_options=None
            if settings.grpc.port is None
            else _grpc_options(settings.grpc.port, servicers),
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )
        try:
            serve.run(application(), name=NAME, route_prefix="/")
        except (RuntimeError, RayError) as error:
            raise StartError(f"the application did not come up: {error}") from None
        yield
        _drain(settings.limits.drain_s)
    finally:
        # Serve's controller is killed while it answers, which Ray reports on stdout as an error.
        with contextlib.redirect_stdout(io.StringIO()):
            serve.shutdown()
            ray.shutdown()


def _start_ray(settings: Settings) -> None:
    """Tried again on a busy machine: Ray ends itself when a process of its own takes over 15 s to
    import, which no setting changes (ray-project/ray#65983). Raises `StartError`."""
    exported = settings.monitor.ray_metrics
    for name, value in ({} if exported else UNEXPORTED).items():
        os.environ.setdefault(name, value)
    own = psutil.Process()
    before = own.children()
    for _ in range(RAY_TRIES):
        try:
            ray.init(
                "local",  # never somebody else's cluster that happens to run here
                num_cpus=(os.cpu_count() or 1)
                + math.ceil(settings.most_replicas * settings.replica_cpus),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace=NAMESPACE,
                _system_config={
                    # Ray's default, 15, leaves answers and leases what everything else leaves.
                    "worker_niceness": 0,
                    # A list of every call, which only Ray's dashboard shows.
                    "task_events_report_interval_ms": 0,
                    "enable_metrics_collection": exported,
                },
                _metrics_export_port=settings.monitor.ray_metrics_port if exported else None,
            )
            return
        except Exception as error:  # Ray has no narrower one for it
            if "timed out during startup" not in str(error):
                raise StartError(f"Ray did not start: {error}") from error
            log.warning("Ray did not start in time")
            # Of a node that never was there Ray ends nothing until this process ends.
            left = [child for child in own.children() if child not in before]
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(left, timeout=KILLED_S)
    raise StartError(
        f"Ray did not start in {RAY_TRIES} tries, see /tmp/ray/session_latest/logs/raylet.out: "
        "start it again when the machine is less busy"
    )


def _grpc_options(port: int, servicers: Sequence[str]) -> gRPCOptions:
    return gRPCOptions(
        port=port,
        grpc_servicer_functions=list(servicers),
        enable_reflection=False,  # our descriptors are in no pool that it could find
    )


def _drain(patience: float) -> None:
    """Have the replicas finish what is in flight, and refuse what comes later."""
    handle = serve.get_deployment_handle(DEPLOYMENT, NAME)
    limit = DRAIN_NOTICE_S + patience + 1
    deadline = time.monotonic() + FIND_S
    while True:
        try:
            handle.broadcast("drain", DRAIN_NOTICE_S, patience).results(timeout_s=limit)
            return
        except DeploymentUnavailableError:  # a new handle has yet to hear of the replicas
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        except (RayError, TimeoutError) as error:
            log.warning("stopping without having finished everything: %s", type(error).__name__)
            return


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
