"""Builds the Serve application: starts its actors and makes the deployment of replicas.

`serve deploy` calls `build`, `lethe serve` calls `running`; both use `application`. The actors are
detached and named, so that a second deploy finds them.
"""

# No `from __future__ import annotations` here: Ray reads the annotation of `build`.

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from forgetting.data.sources import open_image_set
from forgetting.models.backbone import Backbone
from serving.api.client import OperatorApiClient
from serving.api.inference_api import FORM_BYTES, build_inference_api
from serving.api.operator_api import ACTOR as OPERATOR_API
from serving.api.operator_api import OperatorApi
from serving.api.routes.grpc import GrpcRecognizer
from serving.cluster import local
from serving.cluster.actors import replace_actor, start_actor
from serving.cluster.local import DEPLOYMENT
from serving.config.backbones import open_backbone, prepare_backbone
from serving.config.check import check_forget
from serving.config.home import HomeError, check_registry, home_of, prepare_home
from serving.config.settings import Settings
from serving.config.sources import SettingsError, load_settings
from serving.control.client import BlockingControlClient, ControlClient
from serving.control.control import ACTOR as CONTROL
from serving.control.control import Control
from serving.coordination.client import CoordinatorClient
from serving.coordination.coordinator import ACTOR as COORDINATOR
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Terms
from serving.monitoring.canary_classes import ProbeError, read_canaries
from serving.monitoring.client import AsyncMonitorClient, MonitorClient, WatchClient
from serving.monitoring.monitor import ACTOR as MONITOR
from serving.monitoring.monitor import Monitor
from serving.monitoring.watch import ACTOR as WATCH
from serving.monitoring.watch import Watch, wanted
from serving.replica.engines.choice import choose
from serving.replica.recognizer import Recognizer
from serving.training.client import TrainerClient
from serving.training.trainer import ACTOR as TRAINER
from serving.training.trainer import Trainer

LISTEN_S = 10.0
SCALE_LOOK_S = 1.0
"""Seconds between two measurements of the replicas' load."""
SERVICERS = ("serving.api.inference_protocol.rpc.add_to_server",)
"""Functions that Serve's gRPC proxy calls to register methods: those of the Open Inference
Protocol."""

log = logging.getLogger(__name__)


class BuildArgs(BaseModel):
    """Arguments from `serve deploy`: a settings file, at the same path on every node."""

    model_config = ConfigDict(extra="forbid")

    config: Path | None = None


def build(args: BuildArgs) -> serve.Application:
    """Entry point for `serve deploy` (`import_path: serving.app:build`)."""
    return application(load_settings(args.config))


def prepare(settings: Settings, progress: Any = lambda _: None) -> Backbone:
    """Make what a first start needs, and do the checks of every start. Returns the backbone.

    Raises `HomeError`, `BackboneError`, `DataError`, or `RegistryError` when the ledger is damaged
    or was written for another backbone.
    """
    home = home_of(settings)
    prepare_home(home)
    check_forget(settings)
    prepare_backbone(settings, progress)
    backbone = open_backbone(settings)
    state = check_registry(home).state
    if state.seal is not None and state.seal.backbone == backbone.fingerprint:
        raise HomeError(
            f"the registry {home.registry} ended when it was sealed into this backbone: give the "
            'backbone a new one, registry = "a new folder"'
        )
    _check_probes(settings, backbone)
    known = state.backbone
    if known is not None and known != backbone.fingerprint:
        raise HomeError(
            f"the registry {home.registry} was made for backbone {known}, the settings name "
            f"{backbone.fingerprint}: name that backbone, or another registry"
        )
    images = open_image_set(settings.images)
    absent = [name for name in backbone.spec.classes if name not in images.classes]
    if absent:
        raise HomeError(
            f"{len(absent)} of the backbone's classes, {absent[0]!r} first, have no folder in "
            f"{settings.images}: nothing could be measured on them; name the folder it goes with"
        )
    return backbone


def _check_probes(settings: Settings, backbone: Backbone) -> None:
    """Raises `SettingsError` if canary classes can't be probed."""
    unknown = [name for name in settings.probes.classes if name not in backbone.spec.classes]
    if unknown:
        raise SettingsError(f"probes.classes: the backbone has no class {unknown[0]!r}")
    try:
        read_canaries(settings.probes)
    except ProbeError as error:
        raise SettingsError(str(error)) from None


def application(settings: Settings, note: Callable[[str], None] = log.info) -> serve.Application:
    """The application, with its actors started. Ray must be connected.

    `note` is called with a line that says which engine serves, and why. Raises as `prepare`, and
    `EngineError` when the engine that the settings name can't run the backbone.
    """
    backbone = prepare(settings)
    choice = choose(
        settings.engine,
        backbone,
        batch=settings.batch.size,
        threads=settings.threads,
        graphs=home_of(settings).engines,
    )
    note(f"engine: {choice}")
    engine = settings.engine.model_copy(update={"name": choice.name})
    batch = settings.batch.model_copy(update={"size": choice.batch})
    settings = settings.model_copy(update={"engine": engine, "batch": batch})
    actors = start_actors(settings, backbone)
    control, pages = ControlClient(actors.control), AsyncMonitorClient(actors.monitor)
    _renew_operator_api(settings, backbone.spec.classes, control, pages)
    if wanted(settings):
        _start_watch(settings, actors)
    served = Recognizer if settings.grpc.port is None else GrpcRecognizer
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=settings.replicas if settings.autoscale.most is None else None,
        autoscaling_config=_scaling_of(settings),
        max_ongoing_requests=settings.limits.in_flight,
        max_queued_requests=settings.limits.in_flight * 4,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options={
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.engine.gpus if settings.engine.device == "cuda" else 0,
        },
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.limits.drain_s,
        # Metrics count requests. A log line for each would take longer than a small model does.
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )(serve.ingress(_api_of(settings, control, pages))(served))
    return deployment.bind(settings, actors.coordinator, MonitorClient(actors.monitor))


@dataclass(frozen=True)
class Actors:
    """The actors behind every replica. `control` and `monitor` are handles."""

    coordinator: CoordinatorClient
    control: Any
    monitor: Any


def start_actors(settings: Settings, backbone: Backbone) -> Actors:
    """Start the coordinator, the monitor, the trainer and control, or find those that run.

    Raises `SettingsError` when they were started with other settings, or by another version.
    """
    terms = Terms(settings.lease.seconds, settings.lease.margin, settings.lease.heartbeat)
    coordinator = CoordinatorClient(
        start_actor(
            Coordinator,
            COORDINATOR,
            settings.home_path,
            settings.registry_location,
            terms,
            concurrency=1000,
        )
    )
    monitor = start_actor(
        Monitor,
        MONITOR,
        home_of(settings).evidence,
        ray_metrics=settings.monitor.ray_metrics,
        concurrency=8,
    )
    # One call trains; after a restart of control a second one waits for it to end. The other
    # threads answer `progress` and `cancel` meanwhile.
    trainer = start_actor(Trainer, TRAINER, settings, concurrency=4)
    control = start_actor(
        Control,
        CONTROL,
        settings,
        coordinator=coordinator,
        trainer=TrainerClient(trainer),
        monitor=MonitorClient(monitor),
        backbone=backbone.fingerprint,
        classes=backbone.spec.classes,
        concurrency=32,
    )
    try:
        kept = BlockingControlClient(control).settings()
    except (RayError, ImportError, AttributeError) as error:
        raise SettingsError(
            f"the actors that run already don't answer as this version of Lethe does ({error}): if "
            "another version started them, that needs a new start of the cluster"
        ) from None
    if _shared(kept) != _shared(settings):
        raise SettingsError(
            "the actors that run already were started with other settings for home, registry, "
            "images, backbone, lease, forget, canary, threads, probes, reactions or "
            "monitor.ray_metrics; those need a new start of the cluster"
        )
    return Actors(coordinator, control, monitor)


def _start_watch(settings: Settings, actors: Actors) -> None:
    """Start the watch, or find the one that runs. Raises what its constructor raised."""
    watch = start_actor(
        Watch,
        WATCH,
        settings,
        monitor=MonitorClient(actors.monitor),
        operator=BlockingControlClient(actors.control),
        concurrency=2,
    )
    WatchClient(watch).ping()


def _scaling_of(settings: Settings) -> AutoscalingConfig | None:
    chosen = settings.autoscale
    if chosen.most is None:
        return None
    return AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=chosen.most,
        target_ongoing_requests=chosen.in_flight,
        metrics_interval_s=SCALE_LOOK_S,
        look_back_period_s=2 * SCALE_LOOK_S,
        upscale_delay_s=chosen.up_s,
        downscale_delay_s=chosen.down_s,
    )


def _shared(settings: Settings) -> dict[str, Any]:
    """The settings that must be the same for replicas and the detached actors."""
    whole = ("home", "registry", "images", "backbone", "lease", "forget", "canary", "threads")
    include: Any = {**dict.fromkeys((*whole, "probes", "reactions"), True)}
    return settings.model_dump(include={**include, "monitor": {"ray_metrics"}})


def _api_of(
    settings: Settings, control: ControlClient, monitor: AsyncMonitorClient
) -> Callable[[], FastAPI]:
    """A function that builds the inference API; Serve calls it in each replica."""

    def build_in_replica() -> FastAPI:
        return build_inference_api(
            max_body_bytes=settings.limits.body_bytes + FORM_BYTES,
            control=control,
            monitor=monitor,
        )

    return build_in_replica


def _renew_operator_api(
    settings: Settings,
    classes: tuple[str, ...],
    control: ControlClient,
    monitor: AsyncMonitorClient,
) -> None:
    """Start the operator API with these settings. One that runs already is replaced, since it keeps
    no state. Raises `SettingsError` if it can't listen."""
    listening = replace_actor(
        OperatorApi,
        OPERATOR_API,
        settings,
        classes,
        control=control,
        monitor=monitor,
        concurrency=4,
    )
    problem = OperatorApiClient(listening).problem(LISTEN_S)
    if problem is not None:
        raise SettingsError(
            f"the operator API can't listen on {settings.operator.host}:{settings.operator_port} "
            f"({problem}): stop what runs there, or set operator.port"
        )


@contextlib.contextmanager
def running(settings: Settings, note: Callable[[str], None] = log.info) -> Iterator[None]:
    """Serve the application on a Ray of its own on this machine, while the block lasts.

    `note` is called with a line that says which engine serves. Raises as `application` and
    `serving.cluster.local.running`.
    """
    with local.running(settings, lambda: application(settings, note), servicers=SERVICERS):
        yield
