"""Starts Ray and Serve on this machine for an application of ours, and stops them again."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import LoggingConfig
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from serving.cluster import process_state
from serving.cluster.actors import NAMESPACE
from serving.cluster.ingress import prepared, serve_host
from serving.cluster.ray_private import (
    LOGGER_OF_RAY,
    LOGGER_OF_SERVE,
    UNEXPORTED,
    NodeTimeoutError,
    keep_token_private,
    node_log,
    start_node,
)
from serving.config.settings import Settings
from serving.errors import ServingError

log = logging.getLogger(__name__)

NAME = "lethe"
"""The name of the Serve application."""
DEPLOYMENT = "Recognizer"
"""The name of the replicas' deployment in that application."""

DRAIN_NOTICE_S = 0.5
"""How long replicas still take requests after the stop was asked for. What was sent before has
arrived by then."""
FIND_S = 1.0
"""How long a new handle may take to learn of the replicas."""
FIND_AGAIN_S = 0.05
RAY_TRIES = 3
KILLED_S = 5.0
"""How long killed processes are waited for."""


class StartError(ServingError):
    """The server cannot start here; the message says why."""


def check_ports(settings: Settings) -> None:
    """Raises `StartError` when one of the ports of `settings` is taken already."""
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
    """Serve what `application` builds inside the block, on a Ray of its own on this machine.

    `servicers`: import paths of the functions that tell Serve's gRPC proxy its methods, for
    settings with a gRPC port.
    Afterwards, also when the start fails, the environment, the handlers of SIGINT and SIGTERM and
    the levels of Ray's loggers are what they were before.
    Raises what `application` raises, `IngressError`, and `StartError` when Ray or the replicas do
    not come up.
    """
    with (
        process_state.environment(quiet_variables(settings)),
        process_state.signal_handlers(),
        process_state.log_levels(LOGGER_OF_RAY, LOGGER_OF_SERVE),
        prepared(settings),
    ):
        logging.getLogger(LOGGER_OF_SERVE).setLevel(logging.WARNING)
        keep_token_private()
        start_ray(settings)
        try:
            _start_serve(settings, application, servicers)
            yield
            _drain(settings.limits.drain_s)
        finally:
            # Serve kills its controller while that answers, and Ray prints this as an error.
            with contextlib.redirect_stdout(io.StringIO()):
                serve.shutdown()
                ray.shutdown()


def quiet_variables(settings: Settings) -> Mapping[str, str]:
    """What Ray's processes are to read. A variable that is set already keeps its value."""
    if settings.monitor.ray_metrics:
        return {}
    return {name: value for name, value in UNEXPORTED.items() if name not in os.environ}


def start_ray(settings: Settings) -> None:
    """Start Ray, and try again when it was too slow.

    Ray ends itself when one of its processes takes over 15 s to import, as on a busy machine; no
    setting changes that (ray-project/ray#65983). Raises `StartError`.
    """
    own = psutil.Process()
    before = own.children()
    # Three tries at once and a clean-up between two of them: a loop says that best.
    for _ in range(RAY_TRIES):
        try:
            return start_node(
                cpus=(os.cpu_count() or 1)
                + math.ceil(settings.most_replicas * settings.replica_cpus),
                namespace=NAMESPACE,
                metrics_port=settings.monitor.ray_metrics_port
                if settings.monitor.ray_metrics
                else None,
            )
        except NodeTimeoutError:
            log.warning("Ray did not start in time")
            _kill([child for child in own.children() if child not in before])
        except Exception as error:  # Ray has no narrower one
            raise StartError(f"Ray did not start: {error}") from error
    raise StartError(
        f"Ray did not start in {RAY_TRIES} tries, see {node_log()}: "
        "start it again when the machine is less busy"
    )


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End what a failed start has left; Ray itself would end it only when this process ends."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=KILLED_S)


def _start_serve(
    settings: Settings, application: Callable[[], serve.Application], servicers: Sequence[str]
) -> None:
    """Raises `StartError` when the replicas do not come up."""
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


def _grpc_options(port: int, servicers: Sequence[str]) -> gRPCOptions:
    return gRPCOptions(
        port=port,
        grpc_servicer_functions=list(servicers),
        enable_reflection=False,  # it looks in the default pool, where our descriptors are not
    )


def _drain(patience: float) -> None:
    """Have the replicas finish the requests that they have, within `patience` seconds, and refuse
    those that come later."""
    handle = serve.get_deployment_handle(DEPLOYMENT, NAME)
    limit = DRAIN_NOTICE_S + patience + 1
    until_found = Retrying(
        retry=retry_if_exception_type(DeploymentUnavailableError),
        stop=stop_after_delay(FIND_S),
        wait=wait_fixed(FIND_AGAIN_S),
        reraise=True,
    )
    try:
        until_found(
            lambda: handle.broadcast("drain", DRAIN_NOTICE_S, patience).results(timeout_s=limit)
        )
    except DeploymentUnavailableError:
        return  # there is no replica, so nothing is in flight
    except (RayError, TimeoutError) as error:
        log.warning("stopping without having finished everything: %s", type(error).__name__)


def interrupted() -> threading.Event:
    """An event that SIGINT and SIGTERM set from now on.

    Call it in the block of `running`, in the main thread: Ray sets a handler when it starts, and
    that one ends the process without ending the replicas in order.
    """
    ended = threading.Event()
    for number in process_state.SIGNALS:
        signal.signal(number, lambda *_: ended.set())
    return ended
