"""Exports the metrics through Ray's own exporter too, for clusters that scrape every node.

Ray adds the prefix `ray_` to each name, and labels of its own. The alert rules need both removed
(`deploy/prometheus/ray.yml` does that). Ray drops a gauge that isn't set for about half a minute,
so all gauges are set again every few seconds.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ray.util import metrics as ray_metrics

from serving.monitoring.metrics import TABLE, Source

AGAIN_S = 5.0


class RayMirror:
    """The metrics of one process as Ray metrics. Thread-safe."""

    def __init__(self, source: Source, replica: str | None = None) -> None:
        """`replica`: the value of the label `replica`, if the process is a replica."""
        self._own = {} if replica is None else {"replica": replica}
        self._metrics: dict[str, Any] = {}
        self._labels: dict[str, tuple[str, ...]] = {}
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}
        self._lock = threading.Lock()
        for row in TABLE:
            if row.source != source:
                continue
            keys = (*row.labels, *self._own)
            self._labels[row.name] = row.labels
            if row.kind == "counter":
                made: Any = ray_metrics.Counter(row.name, row.help, keys)
            elif row.kind == "gauge":
                made = ray_metrics.Gauge(row.name, row.help, keys)
            else:
                made = ray_metrics.Histogram(row.name, row.help, list(row.buckets), keys)
            self._metrics[row.name] = made
        threading.Thread(target=self._keep, name="ray-metrics", daemon=True).start()

    def count(self, name: str, by: float, labels: tuple[str, ...]) -> None:
        if by > 0:  # Ray rejects zero, so a series starts with its first event
            self._metrics[name].inc(by, self._tags(name, labels))

    def set(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        with self._lock:
            self._gauges[name, labels] = float(value)
        self._metrics[name].set(float(value), self._tags(name, labels))

    def add(self, name: str, by: float) -> None:
        with self._lock:
            value = self._gauges[name, ()] = self._gauges.get((name, ()), 0.0) + by
        self._metrics[name].set(value, self._tags(name, ()))

    def observe(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        self._metrics[name].observe(value, self._tags(name, labels))

    def _tags(self, name: str, labels: tuple[str, ...]) -> dict[str, str]:
        return {**dict(zip(self._labels[name], labels, strict=True)), **self._own}

    def _keep(self) -> None:
        while True:
            time.sleep(AGAIN_S)
            with self._lock:
                known = list(self._gauges.items())
            for (name, labels), value in known:
                self._metrics[name].set(value, self._tags(name, labels))
