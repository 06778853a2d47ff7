"""Builds the Serve application: the actors behind it, the HTTP face, the deployment.

`build` is what `serve deploy` and `lethe serve` both take; the actors are detached and named, so
that a second deploy finds them.
"""

# Annotations are not postponed here: Ray reads that of `build` to check the arguments.

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from forgetting.data.sources import open_image_set
from forgetting.models.backbone import Backbone
from serving.api import operator_api
from serving.api.inference_api import FORM_BYTES, build_inference_api
from serving.api.inference_protocol.servicer import GrpcRecognizer
from serving.api.operator_api import OperatorApi
from serving.config.backbones import open_backbone, prepare_backbone
from serving.config.check import check_forget
from serving.config.home import HomeError, check_registry, home_of, prepare_home
from serving.config.settings import Settings
from serving.config.sources import SettingsError, load_settings
from serving.control import control
from serving.control.control import Control
from serving.coordination import coordinator
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Terms
from serving.monitoring import monitor, watch
from serving.monitoring.canary_classes import ProbeError, read_canaries
from serving.monitoring.monitor import Monitor
from serving.monitoring.watch import Watch
from serving.replica.engines.choice import choose
from serving.replica.recognizer import Recognizer
from serving.training import trainer
from serving.training.trainer import Trainer

NAME = "lethe"
NAMESPACE = "lethe"
LISTEN_S = 10.0
SCALE_LOOK_S = 1.0
"""Between two looks at how much the replicas have to do."""

log = logging.getLogger(__name__)


class BuildArgs(BaseModel):
    """What `serve deploy` may pass: a settings file, on every node at the same path."""

    model_config = ConfigDict(extra="forbid")

    config: Path | None = None


def build(args: BuildArgs) -> serve.Application:
    """Entry point for `serve deploy` (`import_path: serving.app:build`)."""
    return application(load_settings(args.config))


def prepare(settings: Settings, progress: Any = lambda _: None) -> Backbone:
    """Everything that a first start makes, and the checks of every start.

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
    """Raises `SettingsError` where canary classes can't be probed."""
    unknown = [name for name in settings.probes.classes if name not in backbone.spec.classes]
    if unknown:
        raise SettingsError(f"probes.classes: the backbone has no class {unknown[0]!r}")
    try:
        read_canaries(settings.probes)
    except ProbeError as error:
        raise SettingsError(str(error)) from None


def application(settings: Settings, note: Callable[[str], None] = log.info) -> serve.Application:
    """The application, with its actors started. Ray must be connected.

    `note` is told which engine serves, and why. Raises as `prepare`, and `EngineError` when the
    engine that the settings name can't run the backbone.
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
    terms = Terms(settings.lease.seconds, settings.lease.margin, settings.lease.heartbeat)
    leading = _actor(Coordinator, coordinator.ACTOR, 1000).remote(
        settings.home_path, settings.registry_location, terms
    )
    watching = _actor(Monitor, monitor.ACTOR, 8).remote(
        home_of(settings).evidence, ray_metrics=settings.monitor.ray_metrics
    )
    # One trains; one may wait for it after a restart of control, which others mustn't.
    training = _actor(Trainer, trainer.ACTOR, 4).remote(settings)
    commanding = _actor(Control, control.ACTOR, 32).remote(
        settings,
        coordinator=leading,
        trainer=training,
        monitor=watching,
        backbone=backbone.fingerprint,
        classes=backbone.spec.classes,
    )
    kept = ray.get(commanding.settings.remote())
    if _shared(kept) != _shared(settings):
        raise SettingsError(
            "the actors that run already were started with other settings for home, registry, "
            "images, backbone, lease, forget, canary, threads, probes, reactions or "
            "monitor.ray_metrics; those need a new start of the cluster"
        )
    _renew_operator_api(settings, backbone.spec.classes, commanding, watching)
    if watch.wanted(settings):
        looking = _actor(Watch, watch.ACTOR, 2).remote(
            settings, monitor=watching, control=commanding
        )
        ray.get(looking.ping.remote())
    served = Recognizer if settings.grpc.port is None else GrpcRecognizer
    deployment = serve.deployment(
        name="Recognizer",
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
        # Requests are counted in metrics; a line for each would cost more than small models do.
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )(serve.ingress(_api_of(settings))(served))
    return deployment.bind(settings, leading, watching, commanding)


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
    """The settings on which replicas and the detached actors must agree."""
    whole = ("home", "registry", "images", "backbone", "lease", "forget", "canary", "threads")
    include: Any = {**dict.fromkeys((*whole, "probes", "reactions"), True)}
    return settings.model_dump(include={**include, "monitor": {"ray_metrics"}})


def _api_of(settings: Settings) -> Callable[[], FastAPI]:
    """What Serve calls, without arguments, in each replica."""

    def build_in_replica() -> FastAPI:
        return build_inference_api(max_body_bytes=settings.limits.body_bytes + FORM_BYTES)

    return build_in_replica


def _renew_operator_api(
    settings: Settings, classes: tuple[str, ...], commanding: Any, watching: Any
) -> None:
    """Have the operator API listen, with these settings: it holds nothing, so one that runs already
    is replaced. Raises `SettingsError` when it can't."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(operator_api.ACTOR, NAMESPACE))
    deadline = time.monotonic() + LISTEN_S
    while True:
        try:
            listening = _actor(OperatorApi, operator_api.ACTOR, 4, found=False).remote(
                settings, classes, control=commanding, monitor=watching
            )
            break
        except ValueError:  # the name of the one that was killed is free in a moment
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    problem: str | None = ray.get(listening.problem.remote(LISTEN_S))
    if problem is not None:
        raise SettingsError(
            f"the operator API can't listen on {settings.operator.host}:{settings.operator_port} "
            f"({problem}): stop what runs there, or set operator.port"
        )


def _actor(cls: type, name: str, concurrency: int, *, found: bool = True) -> Any:
    """A detached actor that Ray restarts for ever and that finds its state in the ledger; with
    `found` the one that runs already."""
    return ray.remote(cls).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=found,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=concurrency,
    )
