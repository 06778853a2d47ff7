"""A whole server in one process: its real actors, its real replicas, and no Ray between them."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, to_files
from forgetting.erasure.edit import LowRankEdit
from registry.fold.state import AdapterEntry, Job, State
from registry.log.ledger import blob_key
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release, roll_back
from registry.records.releases import ReleaseKind
from serving.api.routes.answering import begun
from serving.config.backbones import open_backbone
from serving.config.home import (
    home_of,
    open_ledger,
    open_private_store,
    open_subjects,
    prepare_home,
    signer,
)
from serving.config.settings import Settings
from serving.config.sources import load_settings
from serving.control.control import Control
from serving.control.forget_worker import ForgetWorker
from serving.coordination.activation import Activation
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Ack, Author, Terms, TrialBegun
from serving.monitoring.metrics import Metrics
from serving.monitoring.monitor import Monitor
from serving.monitoring.trial_verdict import TrialTerms
from serving.monitoring.watch import Watch
from serving.replica.prediction import Embedding, Prediction
from serving.replica.recognizer import Recognizer
from serving.training.trainer import Trainer
from tests.unit.serving.in_process import (
    LocalControl,
    LocalCoordinator,
    LocalMonitor,
    LocalTrainer,
    LocalWatch,
    Process,
)

CLASSES = ("bo", "cy", "dee", "zoe")
LEASE = {"seconds": 2.0, "margin": 0.1, "heartbeat": 0.1, "patience": 0.5}
SHORT_LEASE = {**LEASE, "seconds": 0.8}
"""For tests that wait for its end; on a machine that is busy it may be lost."""
# One step of next to no size, so that nothing is forgotten.
IDLE = {"select_steps": 1, "refit_steps": 1, "rate": 1e-9}
LENIENT = {"acc_f": 1.0, "worst_class": 1.0, "probe": 1.0, "prototypes": 1.0, "dump_share": 1.0}
WAIT_S = 30.0
WATCH_THREADS = ("probes", "leaks", "drift", "renewal", "report")


def settings_for(tiny: Path, home: Path, **changes: Any) -> Settings:
    """Of a server on the tiny backbone, whose trainings take a moment and are all accepted."""
    chosen: dict[str, Any] = {
        "backbone": {"directory": tiny / "backbone"},
        "engine": {"name": "torch"},
        "replicas": 1,
        "lease": LEASE,
        "forget": {"train": IDLE, "gates": LENIENT, "batch_wait_s": 0.0},
    }
    return load_settings(
        home=home,
        images=str(tiny / "images"),
        **{**chosen, **changes},
    )


def image_of(settings: Settings, name: str, number: int = 0) -> bytes:
    """One of the tiny backbone's images, as a file."""
    return (Path(settings.images) / name / f"{number}.png").read_bytes()


def predict(replica: Recognizer, name: str, *, top_k: int = 4, **asked: object) -> Prediction:
    """An answer to an image of the class, whose request asks for `asked`."""

    async def ask() -> Prediction:
        with begun(replica, **asked) as call:  # type: ignore[arg-type]
            return await replica.predict(image_of(replica.settings, name), call, top_k=top_k)

    return asyncio.run(ask())


def embed(replica: Recognizer, name: str, number: int = 0, **asked: object) -> Embedding:
    """The embedding of an image of the class, whose request asks for `asked`."""

    async def ask() -> Embedding:
        with begun(replica, **asked) as call:  # type: ignore[arg-type]
            return await replica.embed(image_of(replica.settings, name, number), call)

    return asyncio.run(ask())


class SmallServer:
    """Coordinator and monitor run from the start; the rest once it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = home_of(settings)
        prepare_home(self.home)
        self._numbers = itertools.count(1)
        self._replicas: list[Recognizer] = []
        self.backbone = open_backbone(settings)
        self.ledger = open_ledger(self.home)
        """Another process's hand in the registry."""
        lease = settings.lease
        self.coordinator = Process(
            lambda: Coordinator(
                settings.home_path,
                settings.registry_location,
                Terms(lease.seconds, lease.margin, lease.heartbeat),
            )
        )
        if self.ledger.refresh().seq == 0:
            # No predecessor can have granted a lease, so none has to be waited for.
            self.coordinator.actor._membership._grace_until = float("-inf")
        self.monitor = Process(lambda: Monitor(self.home.evidence))
        self._trainer: Process[Trainer] | None = None
        self._trainers_settings = settings
        self.accepting = threading.Lock()
        """What a worker of its own, without a control, must hold to record what was trained."""
        self._started: list[Process[Any]] = [self.coordinator, self.monitor]

    # -- its processes

    def replica(self) -> Recognizer:
        replica = Recognizer(
            self.settings,
            LocalCoordinator(self.coordinator.handle),
            LocalMonitor(self.monitor.handle),
        )
        self._replicas.append(replica)
        return replica

    @property
    def trainer(self) -> Process[Trainer]:
        if self._trainer is None:
            self._trainer = self._run(lambda: Trainer(self._trainers_settings))
        return self._trainer

    def restart_trainer(self, **changes: Any) -> None:
        """With other settings, unless none are named; one that is dead already is started."""
        self._trainers_settings = self.settings.model_copy(update=changes)
        self.trainer.kill()
        self.trainer.start()

    def worker(self) -> ForgetWorker:
        """A forget worker without a control around it."""
        chosen, ledger = self.settings, open_ledger(self.home)
        process = self._run(
            lambda: ForgetWorker(
                ledger,
                signer(self.home, "publisher"),
                private=open_private_store(self.home),
                activation=Activation(LocalCoordinator(self.coordinator.handle), ledger),
                trainer=LocalTrainer(self.trainer.handle),
                monitor=LocalMonitor(self.monitor.handle),
                attempts=chosen.forget.attempts,
                terms=TrialTerms(
                    chosen.canary.samples, chosen.canary.seconds, chosen.canary.evidence
                ),
                closed_form=chosen.forget.closed_form,
                company_s=chosen.forget.batch_wait_s,
                accepting=self.accepting,
                metrics=Metrics("trainer"),
            ),
            "forget-worker",
        )
        return process.actor

    def control(self) -> Process[Control]:
        """Control, with a trainer behind it."""
        trainer = self.trainer
        return self._run(
            lambda: Control(
                self.settings,
                coordinator=LocalCoordinator(self.coordinator.handle),
                trainer=LocalTrainer(trainer.handle),
                monitor=LocalMonitor(self.monitor.handle),
                backbone=self.backbone.fingerprint,
                classes=self.backbone.spec.classes,
            ),
            "forget-worker",
        )

    def watch(self, control: Process[Control]) -> LocalWatch:
        watch = self._run(
            lambda: Watch(
                self.settings,
                monitor=LocalMonitor(self.monitor.handle),
                operator=LocalControl(control.handle),
            ),
            *WATCH_THREADS,
        )
        return LocalWatch(watch.handle)

    def _run(self, build: Callable[[], Any], *threads: str) -> Process[Any]:
        process: Process[Any] = Process(build, threads=threads)
        self._started.append(process)
        return process

    def stop_replica(self, replica: Recognizer) -> None:
        """As Serve does."""
        replica.__del__()
        self._replicas.remove(replica)

    def close(self) -> None:
        for replica in list(self._replicas):
            self.stop_replica(replica)
        for process in reversed(self._started):
            process.kill()

    # -- what stands in its registry

    @property
    def state(self) -> State:
        return self.ledger.refresh()

    def author(self, request_id: str | None = None) -> Author:
        return Author("ops", "a test", request_id or f"request-{next(self._numbers)}")

    def request(self, name: str, **options: Any) -> Job:
        """As control does, up to the record of the request."""
        return request_forget(
            self.ledger,
            signer(self.home, "operator"),
            subjects=[open_subjects(self.home).assign(name)],
            backbone=self.backbone.fingerprint,
            **options,
            **self._said(),
        )

    def record_adapter(
        self, job: Job, report: Mapping[str, object] | None = None, *, edit: bool = False
    ) -> AdapterEntry:
        """A small adapter that was made by hand, as if it had been trained for `job`; with `edit`,
        it edits the feature too."""
        stack = self.state.stack_for(job.id)
        return record_trained(
            self.ledger,
            signer(self.home, "publisher"),
            job=job.id,
            files=to_files(
                adapter_by_hand(self.backbone.fingerprint, job.subjects, stack, edit=edit)
            ),
            stack=stack,
            report=json.dumps(report or {}).encode(),
            **self._said(),
        )

    def activate(self, kind: ReleaseKind, job: Job) -> int:
        """Activate a release of `job` behind the coordinator's back."""
        made = publish_release(
            self.ledger, signer(self.home, "publisher"), kind=kind, job=job.id, **self._said()
        )
        return self._activate(made.number)

    def roll_back(self, to: int) -> int:
        """Activate a release with the adapters of `to` behind the coordinator's back."""
        operator = signer(self.home, "operator")
        made = roll_back(self.ledger, operator, to=to, **self._said())
        return self._activate(made.number)

    def _activate(self, release: int) -> int:
        operator = signer(self.home, "operator")
        activate_release(self.ledger, operator, release=release, **self._said())
        return release

    def weights_of(self, adapter: str) -> Path:
        """The file that holds an adapter's weights, made writable."""
        assert isinstance(self.home.registry, Path)
        files = self.state.adapters[adapter].files
        path = self.home.registry / blob_key(files["adapter_model.safetensors"].digest)
        path.chmod(0o600)
        return path

    def _said(self) -> dict[str, str]:
        author = self.author()
        return {
            "actor": author.actor,
            "reason": author.reason,
            "request_id": author.request_id,
        }

    # -- through its coordinator

    def mask(self, name: str) -> int:
        """The release that masks one class more, acknowledged."""
        outcome = LocalCoordinator(self.coordinator.handle).guard(
            self.request(name).id, self.author()
        )
        assert isinstance(outcome, Ack), outcome
        return outcome.release

    def forget(
        self, name: str, report: Mapping[str, object] | None = None, *, edit: bool = False
    ) -> int:
        """The release whose weights have an adapter for the class, masked first, acknowledged."""
        job = self.request(name)
        coordinator = LocalCoordinator(self.coordinator.handle)
        guarded = coordinator.guard(job.id, self.author())
        assert isinstance(guarded, Ack), guarded
        self.record_adapter(job, report, edit=edit)
        outcome = coordinator.adopt(job.id, self.author())
        assert isinstance(outcome, Ack), outcome
        return outcome.release

    def try_out(self, name: str, *, percent: int) -> int:
        """The release on trial, with an adapter for the class, on top of one that masks it."""
        job = self.request(name, canary=percent)
        coordinator = LocalCoordinator(self.coordinator.handle)
        guarded = coordinator.guard(job.id, self.author())
        assert isinstance(guarded, Ack), guarded
        self.record_adapter(job)
        begun = coordinator.try_out(job.id, percent, self.author())
        assert isinstance(begun, TrialBegun), begun
        return begun.release


def adapter_by_hand(
    backbone: str, subjects: tuple[str, ...], stack: tuple[str, ...], *, edit: bool = False
) -> Adapter:
    noise = torch.Generator().manual_seed(len(stack))
    pair = (
        torch.randn(2, 24, generator=noise),
        torch.randn(96, 2, generator=noise) / 100,
    )
    facts = AdapterFacts(
        backbone=backbone,
        stack=stack,
        subjects=subjects,
        method="by hand",
        config={},
        seed=0,
        steps=1,
        data_digest="sha256:" + "0" * 64,
        code_version="0",
        groups_kept=1,
        groups_total=2,
    )
    erasure = None
    if edit:
        a = torch.randn(2, 24, generator=noise)
        mean, shift = torch.randn(2, 24, generator=noise)
        erasure = LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift)
    return Adapter({"blocks.1.mlp.fc1": pair}, facts, erasure)


def until(true: Callable[[], bool], *, seconds: float = WAIT_S) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)
