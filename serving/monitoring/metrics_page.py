"""Parses the metrics page, for `lethe top` and the console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Look:
    """The metrics page at one moment."""

    at: float
    """When it was fetched, in seconds."""
    samples: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]
    """Sample name -> (labels, value) of each sample."""

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples that have `labels`."""
        return sum(
            value
            for found, value in self.samples.get(name, ())
            if labels.items() <= dict(found).items()
        )

    def gauge(self, name: str, **labels: str) -> float | None:
        """The one sample of a gauge that has `labels`; None when it is not on the page."""
        wanted = labels.items()
        found = (v for given, v in self.samples.get(name, ()) if wanted <= dict(given).items())
        return next(found, None)

    def chosen(self, name: str, label: str) -> str | None:
        """The value of `label` for which a gauge is 1; None if there is none."""
        return next((given[label] for given, v in self.samples.get(name, ()) if v == 1), None)


def look(page: str, *, at: float) -> Look:
    """Read a metrics page that was fetched at `at` (seconds)."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Look(at, {name: tuple(values) for name, values in samples.items()})
