"""All settings with their defaults and meanings. `serving.config.sources` loads them.

Only `serving.cli` and `serving.app` load a `Settings`; other modules are given what they need.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DIGITS = "digits"
"""Name of the data source of the embedded default: the digits that come with scikit-learn."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSettings(_Section):
    """The frozen backbone to serve: a folder of `lethe pretrain`, or a timm model with weights."""

    directory: Path | None = Field(None, description="folder written by `lethe pretrain`")
    model: str | None = Field(None, description="timm model name, e.g. vit_base_patch16_224")
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the timm constructor"
    )
    weights: Path | None = Field(None, description="local .safetensors; without it, timm's hub")
    labels: Path | None = Field(None, description="class names, one per line, in head order")

    @model_validator(mode="after")
    def _one_source(self) -> BackboneSettings:
        if self.directory is not None and self.model is not None:
            raise ValueError("name either backbone.directory or backbone.model, not both")
        if self.model is not None and self.labels is None:
            raise ValueError("backbone.model needs backbone.labels (class names, one per line)")
        return self

    @property
    def embedded(self) -> bool:
        """True when the settings name no backbone, so that the digits default is served."""
        return self.directory is None and self.model is None


class LeaseSettings(_Section):
    """The times of the lease protocol, in seconds."""

    seconds: float = Field(
        8.0, gt=0.5, description="a replica may serve this long after its last heartbeat"
    )
    margin: float = Field(0.5, gt=0, description="a replica ends its own lease this much earlier")
    heartbeat: float = Field(0.5, gt=0, description="time between heartbeats")
    patience: float = Field(
        1.0, ge=0, description="a request waits this long for a lease, then 503"
    )

    @model_validator(mode="after")
    def _ordered(self) -> LeaseSettings:
        if self.heartbeat * 3 + self.margin > self.seconds:
            raise ValueError("lease.seconds must cover three heartbeats and the margin")
        return self


class OperatorSettings(_Section):
    """Where the operator API and the console listen; inference has a port of its own."""

    host: str = Field("127.0.0.1", description="its address; only loopback unless set")
    port: int | None = Field(None, ge=1, le=65535, description="default: the inference port + 1")


class GrpcSettings(_Section):
    """The Open Inference Protocol over gRPC."""

    port: int | None = Field(
        None, ge=1, le=65535, description="Serve opens it on every address; not set: no gRPC"
    )


class LimitSettings(_Section):
    body_bytes: int = Field(8 * 2**20, gt=0, description="largest request body")
    pixels: int = Field(16_000_000, gt=0, description="largest image, width x height")
    in_flight: int = Field(128, gt=0, description="most images that a replica works on at once")
    images: int = Field(64, gt=0, description="most images in one request")
    deadline_ms: int = Field(
        30_000,
        gt=0,
        description="a request that waits longer is not computed, unless it sets its own",
    )
    drain_s: float = Field(10.0, ge=0, description="a stop waits this long for requests in flight")


class BatchSettings(_Section):
    size: int | None = Field(
        None,
        gt=0,
        description="largest batch of one forward pass; not set: on a CPU 4 or 16, whichever was "
        "measured to be faster; on a GPU 16",
    )
    wait_ms: float = Field(0.0, ge=0, description="longest time that a batch waits for more images")


class AutoscaleSettings(_Section):
    """More replicas under load. Off unless `most` is set; `replicas` is the smallest number."""

    most: int | None = Field(
        None, gt=0, description="largest number of replicas; not set: no scaling"
    )
    in_flight: float = Field(
        8.0, gt=0, description="target: requests in progress for each replica, on average"
    )
    up_s: float = Field(5.0, ge=0, description="seconds above that before replicas are added")
    down_s: float = Field(120.0, ge=0, description="seconds below that before replicas are stopped")


class MonitorSettings(_Section):
    posture: Literal["shadow", "canary", "off"] = Field(
        "shadow", description="what is watched: shadow samples and probes, probes alone, or nothing"
    )
    shadow_until: datetime | None = Field(
        None, description="shadowing ends at this date (UTC if it names no time zone)"
    )
    blind_after_hours: float = Field(
        24.0,
        gt=0,
        description="after this long without a match the monitor reports it is blind",
    )
    share: float = Field(0.05, ge=0, le=1, description="share of requests that are shadowed")
    queue: int = Field(
        256,
        gt=0,
        description="length of the shadow queue; what doesn't fit is dropped and counted",
    )
    confidence: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a match needs this probability from the unadapted backbone",
    )
    leak_target: float = Field(
        0.02, gt=0, lt=1, description="highest leak rate that is fine; evidence counts against it"
    )
    drift_target: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="highest disagreement on retained classes that is fine; evidence counts "
        "against it",
    )
    ray_metrics: bool = Field(
        False, description="export the metrics through Ray's own exporter too, for clusters"
    )
    ray_metrics_port: int = Field(
        8080, ge=1, le=65535, description="port of that exporter, if `lethe serve` starts Ray"
    )

    @field_validator("shadow_until")
    @classmethod
    def _in_a_zone(cls, at: datetime | None) -> datetime | None:
        return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


class ProbeSettings(_Section):
    """Canary classes: forgotten on purpose and probed all the time. Their images are synthetic or
    used with consent."""

    classes: tuple[str, ...] = Field((), description="canary classes; `lethe forget` each of them")
    images: Path | None = Field(
        None, description="folder with one sub-folder of probe images per canary class"
    )
    per_minute: float = Field(6.0, ge=0.2, le=6000, description="probes a minute, for all classes")

    @model_validator(mode="after")
    def _images_for_classes(self) -> ProbeSettings:
        if self.classes and self.images is None:
            raise ValueError("probes.classes needs probes.images: the folder of their images")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("probes.classes names a class twice")
        return self


class ReactionSettings(_Section):
    """What the server does by itself when live traffic proves something. All off by default."""

    leak: bool = Field(False, description="note a proven leak in the ledger, with its evidence")
    drift: bool = Field(
        False, description="roll back a new release that is proven to harm retained classes"
    )
    hold_off_hours: float = Field(
        24.0, ge=0, description="shortest time between two automatic rollbacks"
    )


class CanarySettings(_Section):
    """How a release on trial is judged."""

    samples: int = Field(
        200, gt=0, description="the release is promoted after this many retained samples"
    )
    seconds: float = Field(
        600.0, gt=0, description="the release is taken off if it has fewer samples by then"
    )
    evidence: float = Field(
        2.0, gt=0, description="the release is taken off at this log10 of the e-value against it"
    )
    shadowed: float = Field(
        1.0, ge=0, le=1, description="share of its requests that the unadapted backbone scores too"
    )


EngineName = Literal["auto", "torch", "torch-compiled", "onnxruntime"]


class EngineSettings(_Section):
    """The engine that runs the forward pass on every replica."""

    name: EngineName = Field(
        "auto", description="auto: the faster of torch and onnxruntime, measured once on this CPU"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: a GPU; torch engines only")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the torch engines' matrix products"
    )
    gpus: float = Field(
        1.0, gt=0, description="GPUs that Ray sets aside for each replica, with device cuda"
    )

    @model_validator(mode="after")
    def _possible(self) -> EngineSettings:
        if self.name == "onnxruntime" and (self.device, self.precision) != ("cpu", "float32"):
            raise ValueError(
                "engine.name onnxruntime runs on device cpu with precision float32; name torch or "
                "torch-compiled for anything else"
            )
        return self


class ForgetSettings(_Section):
    """How a forget command trains its adapter. What is not set has the default of `forgetting`."""

    train: dict[str, Any] = Field(
        default_factory=dict, description="fields of forgetting.training.config.TrainConfig"
    )
    gates: dict[str, Any] = Field(
        default_factory=dict, description="fields of forgetting.report.gates.GateConfig"
    )
    seed: int = Field(0, description="random seed of every training")
    closed_form: bool = Field(
        False,
        description="serve a closed-form feature edit in seconds, until the training ends",
    )
    batch_wait_s: float = Field(
        2.0, ge=0, description="a forget with --batch waits this long for others to join it"
    )
    attempts: int = Field(3, gt=0, description="a training is given up after this many starts")


class Settings(BaseSettings):
    """All settings. The README has an example `lethe.toml`."""

    model_config = SettingsConfigDict(
        env_prefix="LETHE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: Path = Field(Path("~/.lethe"), description="keys, tokens, backbones, registry")
    registry: Path | str | None = Field(
        None, description="registry folder, or an s3://, gs:// or az:// URL; default HOME/registry"
    )
    host: str = Field("127.0.0.1", description="address of inference")
    port: int = Field(8000, ge=1, le=65535, description="port of inference")
    ingress: Literal["python", "haproxy"] = Field(
        "python", description="the proxy in front of the replicas, if `lethe serve` starts Ray"
    )
    replicas: int = Field(
        2, gt=0, description="number of replicas; with autoscale.most the smallest number"
    )
    replica_cpus: float = Field(
        0.5, gt=0, description="logical CPUs that Ray sets aside for each replica"
    )
    threads: int = Field(1, gt=0, description="torch threads in a replica and the trainer")
    images: str = Field(DIGITS, description="'digits', or a folder with one sub-folder per class")
    operator: OperatorSettings = OperatorSettings()
    grpc: GrpcSettings = GrpcSettings()
    backbone: BackboneSettings = BackboneSettings()
    lease: LeaseSettings = LeaseSettings()
    limits: LimitSettings = LimitSettings()
    batch: BatchSettings = BatchSettings()
    autoscale: AutoscaleSettings = AutoscaleSettings()
    monitor: MonitorSettings = MonitorSettings()
    probes: ProbeSettings = ProbeSettings()
    reactions: ReactionSettings = ReactionSettings()
    engine: EngineSettings = EngineSettings()
    forget: ForgetSettings = ForgetSettings()
    canary: CanarySettings = CanarySettings()

    @model_validator(mode="after")
    def _images_go_with_backbone(self) -> Settings:
        if not self.backbone.embedded and self.images == DIGITS and self.backbone.directory is None:
            raise ValueError("backbone.model needs `images`: the folder its classes come from")
        return self

    @model_validator(mode="after")
    def _most_is_not_less(self) -> Settings:
        if self.autoscale.most is not None and self.autoscale.most < self.replicas:
            raise ValueError(
                f"autoscale.most is {self.autoscale.most}, less than replicas ({self.replicas})"
            )
        return self

    @model_validator(mode="after")
    def _two_ports(self) -> Settings:
        if self.operator_port > 65535:
            raise ValueError("name operator.port: the inference port + 1 is no port")
        if self.operator_port == self.port:
            raise ValueError("operator.port is the inference port; name another")
        return self

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def registry_location(self) -> Path | str:
        """An absolute folder, or the URL of a folder in a bucket."""
        if self.registry is None:
            return self.home_path / "registry"
        if is_url(self.registry):
            return str(self.registry)
        return Path(self.registry).expanduser().absolute()

    @property
    def most_replicas(self) -> int:
        return self.autoscale.most or self.replicas

    @property
    def url(self) -> str:
        """The URL of inference."""
        return f"http://{self.host}:{self.port}"

    @property
    def operator_port(self) -> int:
        return self.port + 1 if self.operator.port is None else self.operator.port

    @property
    def operator_url(self) -> str:
        return f"http://{self.operator.host}:{self.operator_port}"


def is_url(where: Path | str) -> bool:
    return isinstance(where, str) and "://" in where
