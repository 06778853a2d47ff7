"""The shadow: the unadapted backbone also scores a share of the live requests.

A thread in each replica does this behind a bounded queue, so no response waits for it; samples that
don't fit are dropped and counted. A hash of the request's id decides whether it is sampled, before
anything is computed. So the sample is uniform and doesn't depend on the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from serving.monitoring.metrics import Metrics
from serving.monitoring.tally import Counts
from serving.replica.slot import ReadyRelease

log = logging.getLogger(__name__)

_LARGEST_BATCH = 16
_GATHER_S = 1.0
"""Seconds that a sample waits for others to be scored in the same pass."""
_NICENESS = 19
_POLL_S = 0.005
_BUSY_SHARE = 0.01
"""Largest share of its time that the thread scores while requests are being computed."""
_STACKS = 16
"""How many stacks' counts are reported: those that were sampled last."""


def sampled(request_id: str, share: float) -> bool:
    """Whether this request is in the uniform sample of `share` (0 to 1)."""
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def lot(request_id: str) -> float:
    """The request's place in [0, 1) for a trial; independent of whether it is sampled."""
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[8:16], "big") / 2**64


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    """(C, H, W), as the model saw it."""
    named: int
    """The adapted weights' top-1 before the mask."""
    ready: ReadyRelease


class Shadow:
    """Scores samples with the bare backbone and counts what it finds."""

    def __init__(
        self,
        bare: Callable[[Tensor], Tensor],
        metrics: Metrics,
        *,
        queue_size: int,
        confidence: float,
        busy: Callable[[], bool] = lambda: False,
    ):
        """`bare`: the bare backbone's logits (B, K) of images (B, C, H, W).
        `confidence`: a sample counts only if the backbone gives its best class this probability.
        `busy`: returns whether a request is being computed; scoring then waits."""
        self._bare = bare
        self._metrics = metrics
        self._confidence = confidence
        self._busy = busy
        self._waiting: queue.Queue[_Sample] = queue.Queue(queue_size)
        self._counts: OrderedDict[str, Counts] = OrderedDict()
        self._books = threading.Lock()
        threading.Thread(target=self._run, name="shadow", daemon=True).start()

    def offer(self, image: Tensor, named: int, ready: ReadyRelease) -> None:
        """Take a sampled request if there is room. Never waits."""
        try:
            self._waiting.put_nowait(_Sample(image, named, ready))
        except queue.Full:
            self._metrics.count("lethe_shadow_drops_total")

    def counts(self) -> dict[str, Counts]:
        """Name of the stack -> what was found since the start."""
        with self._books:
            return dict(list(self._counts.items())[-_STACKS:])

    def _run(self) -> None:
        _yield_to_others()
        allowed = time.monotonic()
        while True:
            batch = self._gather()
            while self._busy() and time.monotonic() < allowed:
                time.sleep(_POLL_S)
            used = time.thread_time()
            try:
                self._score(batch)
            except Exception as error:
                # Any error may come here. The thread must survive it: without it no leak is seen.
                log.error("%d samples were not scored (%s)", len(batch), type(error).__name__)
                self._metrics.count("lethe_shadow_drops_total", by=len(batch))
            allowed = time.monotonic() + (time.thread_time() - used) / _BUSY_SHARE

    def _score(self, batch: list[_Sample]) -> None:
        probabilities = self._bare(torch.stack([sample.image for sample in batch])).softmax(-1)
        confidence, classes = probabilities.max(-1)  # (B, K) -> (B,), (B,)
        for sample, sure, index in zip(batch, confidence.tolist(), classes.tolist(), strict=True):
            self._count(sample, int(index), sure >= self._confidence)

    def _gather(self) -> list[_Sample]:
        """Wait for a sample, then return it with those that follow within `_GATHER_S`."""
        batch = [self._waiting.get()]
        until = time.monotonic() + _GATHER_S
        while len(batch) < _LARGEST_BATCH:
            with contextlib.suppress(queue.Empty):
                batch.append(self._waiting.get(timeout=max(until - time.monotonic(), 0)))
                continue
            break
        return batch

    def _count(self, sample: _Sample, oracle: int, sure: bool) -> None:
        self._metrics.count("lethe_shadow_samples_total")
        if not sure:
            return
        same = sample.named == oracle
        if oracle in sample.ready.erased:
            found = Counts(matches=1, leaks=int(same))
        elif oracle not in sample.ready.guard:
            found = Counts(retained=1, disagreements=int(not same))
        else:
            return
        for name, by in asdict(found).items():
            self._metrics.count(f"lethe_shadow_{name}_total", by=by)
        with self._books:
            stack = sample.ready.stack
            self._counts[stack] = self._counts.get(stack, Counts()) + found
            self._counts.move_to_end(stack)


def _yield_to_others() -> None:
    """Give the calling thread the lowest priority. Only Linux has priorities for threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
