"""Sends probes: images of canary classes, through the real endpoint. Runs in the watch actor.

A canary class is part of the model only to be forgotten; its images are synthetic or used with
consent. Their labels are known, so each probe is one trial: the answer's `before_mask` tells
whether the weights still name the class. Probes need no unadapted backbone and test the whole path
from the proxy to the weights, but they say nothing about other classes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from itertools import cycle
from typing import Any, Literal

import httpx

from registry.errors import RegistryError
from registry.log.ledger import Ledger
from registry.subjects.subject_map import SubjectMap
from serving.client import IMAGE_SUFFIXES, ClientError, read_images
from serving.config.settings import ProbeSettings
from serving.errors import ServingError
from serving.monitoring.metrics import Metrics
from serving.monitoring.tally import Counts, stack_name

log = logging.getLogger(__name__)

Outcome = Literal["quiet", "leak", "exposed", "waiting", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("quiet", "leak", "exposed", "waiting", "failed")
PATH = "/v1/predict"
STACKS = 16
"""How many stacks' counts are reported: those that were probed last."""


class ProbeError(ServingError):
    """The settings name canary classes that can't be probed; the message says why."""


def read_canaries(settings: ProbeSettings) -> dict[str, list[bytes]]:
    """The probe images of each canary class, from `images/CLASS/*`. Raises `ProbeError`."""
    if settings.images is None:
        return {}
    found = {}
    for name in settings.classes:
        folder = settings.images / name
        if folder.parent != settings.images or not folder.is_dir():
            raise ProbeError(
                f"probes.images has no folder {name!r}: put images of that canary class "
                f"({', '.join(IMAGE_SUFFIXES)}) into {settings.images}/{name}"
            )
        try:
            found[name] = read_images(folder)
        except ClientError as error:
            raise ProbeError(f"probes.images: {error}") from None
    return found


class Prober:
    """Sends one probe at a time and counts what it finds. One thread probes; others may read."""

    def __init__(
        self,
        images: Mapping[str, list[bytes]],
        *,
        ledger: Ledger,
        subjects: SubjectMap,
        metrics: Metrics,
        http: httpx.Client,
    ) -> None:
        """`metrics` are the watch actor's. `http` has the server's address and the auditor's
        token."""
        self.metrics = metrics
        for outcome in OUTCOMES:
            # Start at 0: Prometheus sees the first probe as an increase only then.
            self.metrics.count("lethe_probes_total", outcome, by=0)
        self.metrics.set("lethe_canary_classes", len(images))
        self._classes = tuple(images)
        self._turns = cycle([(name, cycle(pictures)) for name, pictures in images.items()])
        self._ledger = ledger
        self._subjects = subjects
        self._http = http
        self._counts: dict[str, Counts] = {}
        self._books = threading.Lock()

    def probe(self) -> Outcome:
        """Send the next image; the classes take turns."""
        name, pictures = next(self._turns)
        outcome = self._send(name, next(pictures))
        self.metrics.count("lethe_probes_total", outcome)
        return outcome

    def counts(self) -> dict[str, Counts]:
        """Name of the stack -> what was found since the start."""
        with self._books:
            return dict(self._counts)

    def _send(self, name: str, picture: bytes) -> Outcome:
        try:
            response = self._http.post(
                PATH,
                content=picture,
                params={"top_k": 1},
                headers={"Content-Type": "application/octet-stream", "X-Lethe-Probe": "true"},
            )
            if response.status_code != 200:
                return "failed"
            answer: dict[str, Any] = response.json()
            release = int(answer["release"])
            shown = answer["predictions"][0]["label"]
            beneath = answer["before_mask"][0]["label"]
            stack, forgotten, masked = self._treatment(release, name)
        except (httpx.HTTPError, RegistryError, ValueError, LookupError, TypeError) as error:
            # The log doesn't quote the error, whose words may name a class.
            log.warning("a probe failed (%s)", type(error).__name__)
            return "failed"
        self.metrics.set("lethe_last_probe_timestamp_seconds", time.time())
        if not forgotten:
            return "exposed" if masked and shown == name else "waiting"
        leak = beneath == name
        self._count(stack, Counts(matches=1, leaks=int(leak)))
        if masked and shown == name:
            return "exposed"
        return "leak" if leak else "quiet"

    def _treatment(self, release: int, name: str) -> tuple[str, bool, bool]:
        """About the release that answered: its stack's name, whether its weights have forgotten
        the class, and whether it masks the class."""
        state = self._ledger.state
        if release not in state.releases:
            state = self._ledger.refresh()
        served = state.releases[release]
        learned = state.subjects_erased_by_weights(release)
        own = {canary: self._subjects.find(canary) for canary in self._classes}
        self.metrics.set(
            "lethe_canary_classes_forgotten", sum(subject in learned for subject in own.values())
        )
        subject = own[name]
        return stack_name(served.adapters), subject in learned, subject in served.guard

    def _count(self, stack: str, found: Counts) -> None:
        with self._books:
            self._counts[stack] = self._counts.pop(stack, Counts()) + found
            while len(self._counts) > STACKS:
                del self._counts[next(iter(self._counts))]
