"""Settings: defaults, `lethe.toml`, `LETHE_*` variables and flags, in rising precedence.

Only the edge (cli, app) builds a `Settings`; everything below gets the part that it needs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DIGITS = "digits"
"""The data source of the embedded default: scikit-learn's bundled scans."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSettings(_Section):
    """Which frozen backbone is served: a directory of ours, or a timm model with its weights."""

    directory: Path | None = Field(None, description="folder written by `lethe pretrain`")
    model: str | None = Field(None, description="timm model name, e.g. vit_base_patch16_224")
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the timm constructor"
    )
    weights: Path | None = Field(None, description="local .safetensors; without it timm's hub")
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
        """True when nothing is named: the digits default is trained at the first start."""
        return self.directory is None and self.model is None


class LeaseSettings(_Section):
    """The times behind the acknowledgement (seconds)."""

    seconds: float = Field(8.0, gt=0.5, description="a replica may serve this long unheard")
    margin: float = Field(0.5, gt=0, description="a replica ends its lease this much earlier")
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
    """Where the operator API and the console listen, apart from inference."""

    host: str = Field("127.0.0.1", description="loopback, unless others are to reach it")
    port: int | None = Field(None, ge=1, le=65535, description="default: the inference port + 1")


class GrpcSettings(_Section):
    """The Open Inference Protocol as gRPC."""

    port: int | None = Field(
        None, ge=1, le=65535, description="on every address (Serve's doing); without it, no gRPC"
    )


class LimitSettings(_Section):
    body_bytes: int = Field(8 * 2**20, gt=0, description="largest request body")
    pixels: int = Field(16_000_000, gt=0, description="largest image, width x height")
    in_flight: int = Field(128, gt=0, description="images a replica works on at once")
    images: int = Field(64, gt=0, description="most images of one request")
    deadline_ms: int = Field(
        30_000, gt=0, description="what waits longer is not computed, unless its request says other"
    )
    drain_s: float = Field(10.0, ge=0, description="a stop waits this long for what is in flight")


class BatchSettings(_Section):
    size: int | None = Field(
        None,
        gt=0,
        description="largest batch of one forward pass; none: on a CPU 4 or 16, whichever is "
        "faster there (measured once), else 16",
    )
    wait_ms: float = Field(
        0.0, ge=0, description="longest that the first of a batch waits for others"
    )


class AutoscaleSettings(_Section):
    """More replicas while there is more to do; off unless `most` is set. `replicas`: the least."""

    most: int | None = Field(None, gt=0, description="largest number of replicas; none: no scaling")
    in_flight: float = Field(
        8.0, gt=0, description="requests at work for each replica, on average, that are aimed at"
    )
    up_s: float = Field(5.0, ge=0, description="more are started after so long above that")
    down_s: float = Field(120.0, ge=0, description="some are stopped after so long below that")


class MonitorSettings(_Section):
    posture: Literal["shadow", "canary", "off"] = Field(
        "shadow", description="what watches: shadowing and probes, probes alone, or nothing"
    )
    shadow_until: datetime | None = Field(
        None, description="shadowing ends by itself at this date (UTC where it names no zone)"
    )
    blind_after_hours: float = Field(
        24.0, gt=0, description="without a match for so long the monitor calls itself blind"
    )
    share: float = Field(0.05, ge=0, le=1, description="share of requests that are shadowed")
    queue: int = Field(256, gt=0, description="shadow queue; more is dropped and counted")
    confidence: float = Field(
        0.5, ge=0, le=1, description="the unadapted backbone must be this sure of a class"
    )
    leak_target: float = Field(0.02, gt=0, lt=1, description="leak rate that evidence is against")
    drift_target: float = Field(
        0.05, gt=0, lt=1, description="disagreement on retained classes that evidence is against"
    )
    ray_metrics: bool = Field(
        False, description="export the metrics through Ray's own exporter too, for clusters"
    )
    ray_metrics_port: int = Field(
        8080, ge=1, le=65535, description="port of that exporter, where `lethe serve` starts Ray"
    )

    @field_validator("shadow_until")
    @classmethod
    def _in_a_zone(cls, at: datetime | None) -> datetime | None:
        return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


class ProbeSettings(_Section):
    """Canary classes: synthetic or consented, forgotten on purpose, and asked for all the time."""

    classes: tuple[str, ...] = Field((), description="canary classes; `lethe forget` each of them")
    images: Path | None = Field(
        None, description="folder with one sub-folder of probe images per canary class"
    )
    per_minute: float = Field(6.0, ge=0.2, le=6000, description="probes sent, all classes together")

    @model_validator(mode="after")
    def _images_for_classes(self) -> ProbeSettings:
        if self.classes and self.images is None:
            raise ValueError("probes.classes needs probes.images: the folder of their images")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("probes.classes names a class twice")
        return self


class ReactionSettings(_Section):
    """What is done without being asked when live traffic proves something. All off by default."""

    leak: bool = Field(False, description="note a proven leak in the ledger, with its evidence")
    drift: bool = Field(
        False, description="roll a new release back that is proven to harm retained classes"
    )
    hold_off_hours: float = Field(
        24.0, ge=0, description="least time between two automatic rollbacks"
    )


class CanarySettings(_Section):
    """How a release that is tried on a share of the requests is judged."""

    samples: int = Field(200, gt=0, description="retained samples after which it is promoted")
    seconds: float = Field(600.0, gt=0, description="a trial with fewer samples is taken off then")
    evidence: float = Field(
        2.0, gt=0, description="log10 of the e-value against it at which it is taken off"
    )
    shadowed: float = Field(
        1.0, ge=0, le=1, description="share of its requests that the unadapted backbone scores too"
    )


EngineName = Literal["auto", "torch", "torch-compiled", "onnxruntime"]


class EngineSettings(_Section):
    """What runs the forward pass on every replica."""

    name: EngineName = Field(
        "auto", description="auto: the faster of torch and onnxruntime, measured once on this CPU"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: for the torch engines")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the torch engines' matrix products"
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
    """How a forget command learns its adapter; what is left out is forgetting's own default."""

    train: dict[str, Any] = Field(
        default_factory=dict, description="forgetting.training.config.TrainConfig"
    )
    gates: dict[str, Any] = Field(
        default_factory=dict, description="forgetting.report.gates.GateConfig"
    )
    seed: int = Field(0, description="of every training")
    closed_form: bool = Field(
        False, description="serve a closed-form erasure within seconds, until the training ends"
    )
    batch_wait_s: float = Field(
        2.0, ge=0, description="a forget with --batch waits this long for others to join it"
    )
    attempts: int = Field(3, gt=0, description="starts of one training before it is given up")


class Settings(BaseSettings):
    """Everything that can be set. See `lethe.toml` in the README."""

    model_config = SettingsConfigDict(
        env_prefix="LETHE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: Path = Field(Path("~/.lethe"), description="keys, tokens, backbones, registry")
    registry: Path | str | None = Field(
        None, description="registry folder, or s3://, gs://, az://; default HOME/registry"
    )
    host: str = Field("127.0.0.1", description="address of inference")
    port: int = Field(8000, ge=1, le=65535, description="port of inference")
    ingress: Literal["python", "haproxy"] = Field(
        "python", description="what takes requests for the replicas, where `lethe serve` starts Ray"
    )
    replicas: int = Field(2, gt=0, description="of the model; with autoscale.most the least")
    replica_cpus: float = Field(0.5, gt=0, description="logical CPUs that Ray sets aside for each")
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
        """An absolute folder, or the URL of a bucket's."""
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
        """Of inference."""
        return f"http://{self.host}:{self.port}"

    @property
    def operator_port(self) -> int:
        return self.port + 1 if self.operator.port is None else self.operator.port

    @property
    def operator_url(self) -> str:
        return f"http://{self.operator.host}:{self.operator_port}"


def is_url(where: Path | str) -> bool:
    return isinstance(where, str) and "://" in where
