"""Sums what shadow samples and probes found, per stack of adapters, over all replicas.

Evidence is about weights, so counts belong to a stack and not to a release: a release that only
widens the guard keeps its stack's evidence, and a new adapter starts from zero. A replica sends its
totals since its start; the tally adds the increase since the replica's last totals. The sums and
those last totals are saved in one file, so a restart of the monitor or a replica counts nothing
twice and loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from registry.store.durable_file import write_durably
from serving.monitoring import evidence

log = logging.getLogger(__name__)

STACKS = 64
"""How many stacks' counts are kept: those that were counted last."""
REPLICAS = 256
"""How many replicas' last totals are kept: those that reported last. A replica's name is never used
again, so the others are not needed."""
_FORMAT = 1
Source = Literal["shadow", "canary"]
SOURCES: tuple[Source, ...] = ("shadow", "canary")


def stack_name(adapters: Sequence[str]) -> str:
    """A short name of an ordered stack of adapter ids."""
    return hashlib.sha256("\n".join(adapters).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Counts:
    """Shadow samples, or probes, of one stack."""

    matches: int = 0
    """The image shows a class that the weights have forgotten."""
    leaks: int = 0
    """Matches that the adapted weights, before the mask, still name."""
    retained: int = 0
    """The image shows a class that is not forgotten."""
    disagreements: int = 0
    """Retained samples on which the adapted and the unadapted weights differ."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Targets:
    """The highest rates that are accepted; evidence counts against them."""

    leak: float
    drift: float


@dataclass(frozen=True)
class Findings:
    """What the counts of one stack prove. The fields are named like the gauges."""

    leak_evidence_log10: float
    leak_detector_log10: float
    leak_upper_bound_ratio: float
    drift_evidence_log10: float


def entry(stack: str, source: Source) -> str:
    """The name of a stack's counts from one source. Live traffic and probes are different streams,
    so their evidence is not mixed."""
    return stack if source == "shadow" else f"{source}:{stack}"


class Tally:
    """Counts of every stack. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._totals: OrderedDict[str, Counts] = OrderedDict()
        self._detectors: dict[str, evidence.Array] = {}
        self._seen: OrderedDict[str, dict[str, Counts]] = OrderedDict()

    def take(self, replica: str, counts: Mapping[str, Counts], targets: Targets) -> bool:
        """Add the increase of `replica`'s totals, by stack; return whether there was any."""
        seen = self._seen.setdefault(replica, {})
        self._seen.move_to_end(replica)
        grew = False
        for stack, now in counts.items():
            grown = now - seen.get(stack, Counts())
            if grown == Counts() or min(astuple(grown)) < 0:  # an older snapshot, arriving late
                continue
            grew = True
            seen[stack] = now
            self._totals[stack] = self._totals.get(stack, Counts()) + grown
            self._totals.move_to_end(stack)
            if grown.matches:
                self._detect(stack, grown, targets.leak)
        self._bound()
        return grew

    def _detect(self, stack: str, grown: Counts, target: float) -> None:
        state = self._detectors.get(stack)
        start = evidence.quiet(target)
        if state is None or state.shape != start.shape:  # the target has changed
            state = start
        self._detectors[stack] = evidence.detect(state, grown.matches, grown.leaks, target=target)

    def _bound(self) -> None:
        while len(self._seen) > REPLICAS:
            self._seen.popitem(last=False)
        while len(self._totals) > STACKS:
            # Removed everywhere at once. If the stack comes back, it is counted from zero.
            stack, _ = self._totals.popitem(last=False)
            self._detectors.pop(stack, None)
            for seen in self._seen.values():
                seen.pop(stack, None)

    def total(self, stack: str) -> Counts:
        return self._totals.get(stack, Counts())

    def findings(self, stack: str, targets: Targets) -> Findings:
        total = self.total(stack)
        state = self._detectors.get(stack, evidence.quiet(targets.leak))
        leak = evidence.log10_evidence(total.matches, total.leaks, target=targets.leak)
        drift = evidence.log10_evidence(total.retained, total.disagreements, target=targets.drift)
        return Findings(
            leak_evidence_log10=float(leak),
            leak_detector_log10=float(evidence.log10_detection(state)),
            leak_upper_bound_ratio=float(evidence.upper_bound(total.matches, total.leaks)),
            drift_evidence_log10=float(drift),
        )

    # -- across restarts

    def save(self, path: Path) -> None:
        """Replace the file at `path` durably. Raises OSError."""
        document = {
            "format": _FORMAT,
            "totals": [[stack, asdict(counts)] for stack, counts in self._totals.items()],
            "detectors": {stack: state.tolist() for stack, state in self._detectors.items()},
            "seen": [
                [replica, {stack: asdict(counts) for stack, counts in seen.items()}]
                for replica, seen in self._seen.items()
            ],
        }
        write_durably(path, json.dumps(document).encode())

    @classmethod
    def load(cls, path: Path) -> Tally:
        """The saved tally; an empty one, with a warning in the log, if the file can't be read.

        It doesn't raise: evidence grows again with traffic, and a monitor that doesn't start would
        see nothing at all.
        """
        tally = cls()
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']} instead of {_FORMAT}")
            totals = {stack: Counts(**counts) for stack, counts in document["totals"]}
            detectors = {s: np.asarray(v, dtype=float) for s, v in document["detectors"].items()}
            seen = [
                (replica, {stack: Counts(**counts) for stack, counts in stacks.items()})
                for replica, stacks in document["seen"]
            ]
        except FileNotFoundError:
            return tally
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the evidence in %s can't be read; counts start at zero: %s", path, error)
            return tally
        tally._totals.update(totals)
        tally._detectors.update(detectors)
        tally._seen.update(seen)
        return tally
