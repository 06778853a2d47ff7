"""One replica of the served model, run by Ray Serve: decode, batch, forward, mask, answer.

Every protocol ends in `Recognizer.score`, so all take the same path. A request holds a ticket from
before its batch until its response is sent. The lease is checked when a batch starts and again just
before the response is sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from prometheus_client.metrics_core import Metric as Family
from ray.exceptions import RayError
from torch import Tensor

from forgetting.data.preprocess import transform
from forgetting.models.golden import golden_image
from registry.errors import NotFoundError, RegistryError
from registry.subjects.subject_map import SubjectMap
from serving.config.backbones import open_backbone
from serving.config.home import home_of, token, wait_for_ledger, wait_for_private_store
from serving.config.settings import Settings
from serving.coordination.client import CoordinatorClient
from serving.coordination.membership import boot_clock
from serving.coordination.messages import Terms
from serving.monitoring.client import MonitorClient
from serving.monitoring.messages import OnTrial, Snapshot
from serving.monitoring.metrics import Metrics
from serving.monitoring.posture import Stance
from serving.monitoring.ray_export import RayMirror
from serving.monitoring.tally import Targets
from serving.replica.admission import Admission, AskedError, Call, DeadlineError, OtherReleaseError
from serving.replica.batching import Batcher
from serving.replica.decode import load_image, open_image
from serving.replica.engines.choice import LARGEST_BATCH, make_engine, tolerance_of
from serving.replica.member import Member
from serving.replica.prediction import (
    Embedding,
    Guess,
    NoFeatureError,
    Prediction,
    Scored,
    Scores,
    best_of,
    scores_of,
    space_of,
)
from serving.replica.release_reader import ReleaseReader
from serving.replica.shadow import Shadow, lot, sampled
from serving.replica.slot import BuildError, ReadyRelease, Slot, Wish

log = logging.getLogger(__name__)

START_S = 60.0
PUSH_S = 1.0
LEASE_POLL_S = 0.02
LARGEST_TARGET = 0.99
SWITCH_S = 0.0005
"""Seconds after which a computing thread gives up Python's global lock. Python's default is ten
times as long: while a swap reads the ledger, each step of a request could wait that long."""
AT_ONCE_BYTES, AT_ONCE_PIXELS = 16 * 1024, 64 * 64
"""Files and images up to these sizes are decoded in the event loop, if the model's input is no
larger than that either: it takes less time than handing them to a thread."""
SWAP_OUTCOMES = ("ok", "rejected", "failed")


@dataclass(frozen=True, eq=False)
class _Item:
    images: Tensor
    """(B, C, H, W); one release answers all of them."""
    call: Call
    wish: Wish
    queued: float
    embed: bool
    """Whether the features are asked for too."""


class Recognizer:
    """Served by Ray Serve behind `serving.api.routes`."""

    def __init__(
        self, settings: Settings, coordinator: CoordinatorClient, monitor: MonitorClient
    ) -> None:
        torch.set_num_threads(settings.threads)
        sys.setswitchinterval(SWITCH_S)
        self.settings = settings
        self._monitor = monitor
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
        home = home_of(settings)
        self.auditor_token = token(home, "auditor")
        exported = settings.monitor.ray_metrics
        self.metrics = Metrics("replica", RayMirror("replica", self.name) if exported else None)
        self.stance = Stance(settings)
        for outcome in SWAP_OUTCOMES:
            # Start at 0: Prometheus sees the first failure as an increase only then.
            self.metrics.count("lethe_swaps_total", outcome, by=0)
        backbone = open_backbone(settings)
        self._backbone = backbone.fingerprint
        self._edit_in_head = backbone.spec.edit_in_head
        self.classes = backbone.spec.classes
        self.input_size = backbone.spec.preprocess.input_size
        self.admission = Admission(settings.limits.in_flight)
        self._transform = transform(backbone.spec.preprocess)
        self._takes_small = self.input_size[1] * self.input_size[2] <= AT_ONCE_PIXELS
        # Two threads decode, one runs all forward passes and nothing else, one builds releases that
        # auditors ask for.
        self._decoders = concurrent.futures.ThreadPoolExecutor(2, "decode")
        self._forwarder = concurrent.futures.ThreadPoolExecutor(
            1, "forward", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self._builder = concurrent.futures.ThreadPoolExecutor(
            1, "build", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self._forwarding = threading.Event()
        self._gone = threading.Event()
        golden = golden_image(backbone.spec.preprocess.input_size)
        engine = make_engine(
            settings.engine, backbone, threads=settings.threads, graphs=home.engines
        )
        self.slot = Slot(engine, golden)
        self.reader = ReleaseReader(
            wait_for_ledger(home, read_only=True),
            SubjectMap(wait_for_private_store(home, read_only=True)),
            backbone,
            tolerance=tolerance_of(settings.engine),
        )
        self.shadow = Shadow(
            self.slot.bare,
            self.metrics,
            queue_size=settings.monitor.queue,
            confidence=settings.monitor.confidence,
            busy=self._forwarding.is_set,
        )
        self.member = Member(
            self.name,
            coordinator,
            slot=self.slot,
            reader=self.reader,
            terms=Terms(settings.lease.seconds, settings.lease.margin, settings.lease.heartbeat),
            on_swap=self._note_swap,
            on_failure=lambda stage: self.metrics.count("lethe_release_failures_total", stage),
        )
        self._batch_size = settings.batch.size or LARGEST_BATCH
        self._batches = Batcher(
            self._classify, size=self._batch_size, wait_s=settings.batch.wait_ms / 1000
        )
        # Serve routes requests here once the constructor returns, so be current before that.
        self.member.start(START_S + settings.lease.seconds)
        threading.Thread(target=self._push, name="push", daemon=True).start()

    # -- predicting

    async def predict(self, data: bytes, call: Call, *, top_k: int) -> Prediction:
        """Answer one image. Raises as `decode` and `score`."""
        scored, stages = await self._scored(data, call)
        return Prediction(
            guesses=self._guesses(scored.best(top_k)),
            before_mask=self._guesses(best_of(scored.logits[:1], top_k)[0])
            if call.auditing
            else None,
            release=scored.ready.number,
            parent=scored.ready.parent,
            request_id=call.request_id,
            stages=stages,
        )

    async def embed(self, data: bytes, call: Call) -> Embedding:
        """The L2-normalised feature of one image. Raises as `decode` and `score`, and
        `NoFeatureError` before it reads the image."""
        if self._edit_in_head:
            raise NoFeatureError(
                "this backbone was sealed with a feature edit folded into its head, so what its "
                "head reads still tells the erased classes apart"
            )
        scored, stages = await self._scored(data, call, embed=True)
        ready = scored.ready
        return Embedding(
            vector=scored.vectors[0],
            space=space_of(self._backbone, ready.stack),
            masked_only=len(ready.guard - ready.erased),
            release=ready.number,
            parent=ready.parent,
            request_id=call.request_id,
            stages=stages,
        )

    async def _scored(
        self, data: bytes, call: Call, *, embed: bool = False
    ) -> tuple[Scored, dict[str, float]]:
        """One image, decoded and scored, and the seconds of each stage."""
        started = time.perf_counter()
        image = await self.decode(data, call)
        decoded = time.perf_counter() - started
        scored = await self.score(image.unsqueeze(0), call, embed=embed)
        return scored, {"decode": decoded, "queue": scored.queued, "forward": scored.computed}

    async def decode(self, data: bytes, call: Call) -> Tensor:
        """An image file, decoded and pre-processed: (C, H, W). Raises `DecodeError`, and
        `DeadlineError` when the deadline has passed."""
        loop = asyncio.get_running_loop()
        if loop.time() >= call.deadline:
            self.metrics.count("lethe_images_skipped_total")
            raise DeadlineError
        started = time.perf_counter()
        if len(data) <= AT_ONCE_BYTES and self._takes_small:
            image = open_image(data, max_pixels=self.settings.limits.pixels)
            if image.width * image.height <= AT_ONCE_PIXELS:
                tensor = self._read(image)
            else:
                tensor = await loop.run_in_executor(self._decoders, self._read, image)
        else:
            tensor = await loop.run_in_executor(self._decoders, self._decode, data)
        self.metrics.observe(
            "lethe_stage_duration_seconds", time.perf_counter() - started, "decode"
        )
        return tensor

    async def score(self, images: Tensor, call: Call, *, embed: bool = False) -> Scored:
        """Score pre-processed images (B, C, H, W) with the active release, the release on trial,
        or the one that an auditor asks for. `embed`: the features are asked for too.

        Raises `NotCurrentError` when this replica may not serve or can't reach `call.min_release`;
        `SuspendedError` when serving is suspended; `OtherReleaseError` when `call.release` is not
        the active one; `AskedError` when it can't be built for an auditor; and `DeadlineError`.
        """
        loop = asyncio.get_running_loop()
        asked = None
        if call.release is not None and call.auditing:
            asked = await self._release_asked(call.release)
        if call.min_release is not None and not self.slot.wait_for(call.min_release, 0):
            await asyncio.to_thread(
                self.member.catch_up_to, call.min_release, self.settings.lease.patience
            )
        if asked is None:
            self._check_release(call, self.slot.active)
        await self._lease(loop.time() + self.settings.lease.patience)
        # A request that names the active release is never answered by the one on trial.
        place = lot(call.request_id) if call.release is None else 1.0
        item = _Item(images, call, Wish(call.ticket, place, asked), time.perf_counter(), embed)
        scored = await self._batches.ask(item)
        if scored is None:
            raise DeadlineError
        if asked is None:
            self._check_release(call, scored.ready)
        # An auditor's request to an old release says nothing about live traffic.
        if not call.probe and asked is None:
            self._watch(images, scored, call.request_id)
        self.member.check()
        return scored

    def _check_release(self, call: Call, ready: ReadyRelease | None) -> None:
        if ready is not None and call.release not in (None, ready.number):
            raise OtherReleaseError(
                f"release {call.release} does not serve; release {ready.number} does"
            )

    def _watch(self, images: Tensor, scored: Scored, request_id: str) -> None:
        """Count answers that name a forgotten class before the mask, and offer a sample to the
        shadow."""
        sample = sampled(request_id, self._sampled_of(scored.ready))
        if not sample and not scored.ready.erased:
            return
        for index, named in enumerate(scored.named):
            if named in scored.ready.erased:
                self.metrics.count("lethe_emissions_total")
            if sample:
                self.shadow.offer(images[index], named, scored.ready)

    def _sampled_of(self, ready: ReadyRelease) -> float:
        """The share to shadow of the requests that `ready` answers."""
        tried = self.slot.trial
        if tried is not None and tried.number == ready.number and self.stance.shadowing:
            return self.settings.canary.shadowed
        return self.stance.share

    async def _lease(self, deadline: float) -> None:
        """Wait for a lease until `deadline`, so that a replica that was frozen for a moment answers
        late instead of failing. Raises as `Member.check`."""
        while self.member.lease_left <= 0:
            if self.member.suspended or asyncio.get_running_loop().time() >= deadline:
                self.member.check()
            await asyncio.sleep(LEASE_POLL_S)

    def _decode(self, data: bytes) -> Tensor:
        return self._read(open_image(data, max_pixels=self.settings.limits.pixels))

    def _read(self, image: Image.Image) -> Tensor:
        load_image(image)
        return self._transform(image)

    async def _classify(self, items: list[_Item]) -> list[Scored | None]:
        """Score each item; None if its client is gone or its deadline has passed.

        The active release answers all items but the trial's share and those that an auditor sends
        to another release. One release answers all images of an item.
        """
        self.member.check()
        loop = asyncio.get_running_loop()
        now = loop.time()
        live = [i for i in items if not i.call.ticket.closed and now < i.call.deadline]
        skipped = sum(len(item.images) for item in items if item not in live)
        if skipped:
            self.metrics.count("lethe_images_skipped_total", by=skipped)
        if not live:
            return [None] * len(items)
        chosen = self.slot.pin([item.wish for item in live])
        started = time.perf_counter()
        for item in live:
            self.metrics.observe("lethe_stage_duration_seconds", started - item.queued, "queue")
        placed: dict[int, tuple[Scores, int]] = {}
        for ready in {id(each): each for each in chosen}.values():
            own = [i for i, each in enumerate(chosen) if each is ready]
            images = [image for i in own for image in live[i].images]
            embed = any(live[i].embed for i in own)
            scores = await loop.run_in_executor(
                self._forwarder, self._forward, ready, images, embed
            )
            self.metrics.count("lethe_images_total", by=len(images))
            first = 0
            for i in own:
                placed[i] = scores, first
                first += len(live[i].images)
        took = time.perf_counter() - started
        self.metrics.observe("lethe_stage_duration_seconds", took, "forward")
        scored = iter(
            Scored(*placed[i], len(live[i].images), ready, started - live[i].queued, took)
            for i, ready in enumerate(chosen)
        )
        return [next(scored) if item in live else None for item in items]

    def _forward(self, ready: ReadyRelease, images: list[Tensor], embed: bool) -> Scores:
        """Score images (C, H, W) with `ready`, in forward passes of at most the batch size. With
        `embed` the same passes also give the features."""
        size = self._batch_size
        features, logits = [], []
        self._forwarding.set()
        try:
            for first in range(0, len(images), size):
                batch = torch.stack(images[first : first + size])  # b x (C, H, W) -> (b, C, H, W)
                self.metrics.observe("lethe_batch_size", len(batch))
                if embed:
                    feature, logit = ready.forward.embed(batch)
                    features.append(feature)
                else:
                    logit = ready.forward(batch)
                logits.append(logit)
            return scores_of(torch.cat(logits), ready.guard, torch.cat(features) if embed else None)
        finally:
            self._forwarding.clear()

    async def _release_asked(self, number: int) -> ReadyRelease:
        """Release `number`, built if it isn't resident. Raises `AskedError`."""
        try:
            # One at a time, so that auditors' requests never occupy more than one thread.
            return await asyncio.get_running_loop().run_in_executor(
                self._builder, self._build, number
            )
        except NotFoundError as error:
            raise AskedError(404, str(error)) from None
        except (RegistryError, BuildError) as error:
            raise AskedError(409, f"release {number} can't be built: {error}") from None

    def _build(self, number: int) -> ReadyRelease:
        self.reader.check_defined(number)
        return self.reader.ready(number, self.slot)

    async def drain(self, notice: float, patience: float) -> bool:
        """Finish the requests in flight before the server stops. See `Admission.drain`."""
        return await self.admission.drain(notice=notice, patience=patience)

    def _guesses(self, best: Sequence[tuple[int, float]]) -> tuple[Guess, ...]:
        return tuple(Guess(self.classes[index], round(share, 6)) for index, share in best)

    # -- numbers

    def _note_swap(self, step: str, seconds: float) -> None:
        if step in SWAP_OUTCOMES:
            self.metrics.count("lethe_swaps_total", step)
            if step == "ok":
                self.metrics.set("lethe_last_swap_timestamp_seconds", time.time())
        else:
            self.metrics.observe("lethe_swap_duration_seconds", seconds, step)

    def snapshot(self) -> Snapshot | None:
        """This replica's current numbers; None before its first release."""
        ready = self.slot.active
        if ready is None:
            return None
        tried = self.slot.trial
        return Snapshot(
            self._families(ready),
            taken=boot_clock(),
            release=ready.number,
            stack=ready.stack,
            targets=self._targets(ready),
            counts=self.shadow.counts(),
            expected=self.settings.replicas,
            posture=self.stance.now(),
            forgotten=len(ready.erased),
            trial=None
            if tried is None
            else OnTrial(tried.number, tried.stack, self._targets(tried)),
        )

    def _targets(self, ready: ReadyRelease) -> Targets:
        """The rates that evidence counts against: the settings' limits or, if higher, the rates
        that the release's own reports measured."""
        limits, measured = self.settings.monitor, ready.measured
        return Targets(
            leak=min(max(limits.leak_target, measured.leak), LARGEST_TARGET),
            drift=min(max(limits.drift_target, measured.drift), LARGEST_TARGET),
        )

    def _families(self, ready: ReadyRelease) -> list[Family]:
        self.metrics.set("lethe_release", ready.number)
        self.metrics.set("lethe_guard_size", len(ready.guard))
        self.metrics.set("lethe_active_groups", ready.groups)
        self.metrics.set("lethe_registry_seq", self.reader.seq)
        self.metrics.set("lethe_lease_remaining_seconds", max(self.member.lease_left, -1e6))
        return self.metrics.families()

    def _push(self) -> None:
        while not self._gone.wait(PUSH_S):
            snapshot = self.snapshot()
            if snapshot is None:
                continue
            try:
                self._monitor.push(self.name, snapshot, timeout=PUSH_S * 5)
            except RayError as error:
                log.warning("the monitor is away: %s", type(error).__name__)

    # -- Serve calls these

    def check_health(self) -> None:
        """Raises when this replica can't follow the ledger; Serve then replaces it."""
        self.member.check_following()

    def __del__(self) -> None:
        if hasattr(self, "member"):
            self._gone.set()
            self.member.stop()
