"""The watch actor: probes canary classes, and reacts to what the monitor proves.

It is started only if the settings name canary classes, a reaction or Ray's exporter. It keeps no
state: the monitor has what the probes found, and the ledger what was done.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import httpx

from registry.subjects.subject_map import SubjectMap
from serving.config.home import home_of, token, wait_for_ledger, wait_for_private_store
from serving.config.settings import Settings
from serving.coordination.membership import boot_clock
from serving.coordination.messages import Author
from serving.monitoring.canary_classes import Prober, read_canaries
from serving.monitoring.client import MonitorClient
from serving.monitoring.messages import ProbeSnapshot
from serving.monitoring.metrics import Metrics
from serving.monitoring.ray_export import RayMirror
from serving.monitoring.reactions import ACTOR as AUTHOR
from serving.monitoring.reactions import Operator, due_remark, due_rollback, stack_before

log = logging.getLogger(__name__)

ACTOR = "lethe-watch"
REPORT_S = 1.0
REACT_S = 2.0
RENEW_S = 5.0
AGAIN_S = 60.0
"""Seconds between two tries of a reaction that was refused."""
MONITOR_S = 5.0
PROBE_S = 10.0
"""A probe that gets no answer within this many seconds has failed."""
REACTIONS = ("leak", "drift")
OUTCOMES = ("done", "refused")


def wanted(settings: Settings) -> bool:
    """Whether the settings ask for something that this actor does."""
    chosen = settings.reactions
    exported = settings.monitor.ray_metrics
    return bool(settings.probes.classes) or chosen.leak or chosen.drift or exported


class Watch:
    """Runs as a threaded Ray actor. Each of its tasks has a thread."""

    def __init__(self, settings: Settings, *, monitor: MonitorClient, operator: Operator) -> None:
        self._settings = settings
        self._monitor = monitor
        self._operator = operator
        self._name = f"watch-{uuid.uuid4().hex[:8]}"
        self._probing = threading.Event()
        exported = settings.monitor.ray_metrics
        self._metrics = Metrics("watch", RayMirror("watch") if exported else None)
        for reaction in REACTIONS:
            for outcome in OUTCOMES:
                self._metrics.count("lethe_reactions_total", reaction, outcome, by=0)
        home = home_of(settings)
        self._ledger = wait_for_ledger(home, read_only=True)
        self._prober: Prober | None = None
        if settings.probes.classes:
            self._prober = Prober(
                read_canaries(settings.probes),
                ledger=wait_for_ledger(home, read_only=True),
                subjects=SubjectMap(wait_for_private_store(home, read_only=True)),
                metrics=self._metrics,
                http=httpx.Client(
                    base_url=settings.url,
                    headers={"Authorization": f"Bearer {token(home, 'auditor')}"},
                    timeout=PROBE_S,
                    trust_env=False,
                ),
            )
            self._start("probes", self._probe, 60 / settings.probes.per_minute)
        if settings.reactions.leak:
            self._start("leaks", self._react_to_a_leak, REACT_S)
        if settings.reactions.drift:
            self._start("drift", self._react_to_drift, REACT_S)
        if exported:
            self._start("renewal", self._renew, RENEW_S)
        self._start("report", self._report, REPORT_S)

    def ping(self) -> str:
        """The actor's name. An answer shows that the actor runs."""
        return self._name

    def _start(self, name: str, step: Callable[[], float | None], every: float) -> None:
        def run() -> None:
            while True:
                pause: float | None = None
                try:
                    pause = step()
                except Exception as error:
                    # Any error may come here. Trying again is safe: counts are sent as totals, and
                    # the ledger shows what was done. The log doesn't quote the error, whose words
                    # may name a class.
                    log.warning("%s: failed (%s)", name, type(error).__name__)
                time.sleep(every if pause is None else pause)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _report(self) -> None:
        counts = self._prober.counts() if self._prober else {}
        snapshot = ProbeSnapshot(self._metrics.families(), taken=boot_clock(), counts=counts)
        if self._monitor.push_probes(self._name, snapshot, timeout=MONITOR_S):
            self._probing.set()
        else:
            self._probing.clear()

    def _renew(self) -> None:
        """Let the monitor compute its metrics and control's, as a scrape of its page does.

        Ray's exporter gets them only then.
        """
        figures = self._operator.figures(timeout=MONITOR_S)
        self._monitor.page(figures, timeout=MONITOR_S)

    def _probe(self) -> None:
        self._probing.wait()
        if self._prober is not None:
            self._prober.probe()

    # -- reactions

    def _react_to_a_leak(self) -> float | None:
        proof = self._monitor.proof(timeout=MONITOR_S)
        remark = None if proof is None else due_remark(self._ledger.refresh(), proof)
        if remark is None:
            return None
        written = any(
            entry.record.request_id == remark.request_id
            for entry in self._ledger.records(remark.since)
        )
        if written:
            return AGAIN_S
        self._operator.remark(remark, Author(AUTHOR, "", remark.request_id))
        log.warning("a leak is proven; the ledger has a remark")
        self._metrics.count("lethe_reactions_total", "leak", "done")
        return None

    def _react_to_drift(self) -> float | None:
        proof = self._monitor.proof(timeout=MONITOR_S)
        state = self._ledger.refresh()
        below = stack_before(state)
        if proof is None or below is None:
            return None
        rollback = due_rollback(
            state,
            proof,
            self._monitor.proof_of(*below, timeout=MONITOR_S),
            now=datetime.now(UTC),
            hold_off_s=self._settings.reactions.hold_off_hours * 3600,
        )
        if rollback is None:
            return None
        log.warning("drift is proven; going back to release %d", rollback.to)
        author = Author(AUTHOR, rollback.reason, rollback.request_id)
        if not self._operator.roll_back(rollback, author):
            log.warning("the automatic rollback was not made")
            self._metrics.count("lethe_reactions_total", "drift", "refused")
            return AGAIN_S
        self._metrics.count("lethe_reactions_total", "drift", "done")
        return None
