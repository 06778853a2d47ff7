"""Decides whether a release on trial is promoted or taken off. A pure function of the counts.

The release is taken off as soon as the evidence reaches the bar, either that it leaks or that it
disagrees too much on retained classes. The evidence is an e-value, so it may be read after every
sample: however long the trial, a good release is taken off with a probability of at most 10^-bar.
The release is promoted after enough retained samples without that. If there are too few samples in
the trial's time, it is taken off, because too little is known about it. `tally` has the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.monitoring.tally import Counts, Findings


@dataclass(frozen=True)
class TrialTerms:
    """When a trial is decided."""

    samples: int
    """Samples of retained classes after which the release is promoted."""
    seconds: float
    """The release is taken off if it has fewer samples after this time."""
    bar: float
    """The release is taken off at this log10 of an e-value against it."""


@dataclass(frozen=True)
class Seen:
    """What was counted so far of the weights on trial, and what that proves."""

    counts: Counts
    findings: Findings


@dataclass(frozen=True)
class Verdict:
    """What to do with the release; "return" takes it off."""

    act: Literal["promote", "return"]
    detail: str


def verdict(seen: Seen | None, *, elapsed: float, terms: TrialTerms) -> Verdict | None:
    """The verdict after `elapsed` seconds; None: wait. `seen`: None before any replica reports."""
    if seen is not None:
        counts, findings = seen.counts, seen.findings
        if findings.leak_evidence_log10 >= terms.bar:
            return Verdict(
                "return",
                f"it still names forgotten classes: {counts.leaks} of {counts.matches} sightings "
                f"(evidence {findings.leak_evidence_log10:.1f}, bar {terms.bar:g})",
            )
        if findings.drift_evidence_log10 >= terms.bar:
            return Verdict(
                "return",
                "it disagrees with the unadapted backbone on retained classes: "
                f"{counts.disagreements} of {counts.retained} samples "
                f"(evidence {findings.drift_evidence_log10:.1f}, bar {terms.bar:g})",
            )
        if counts.retained >= terms.samples:
            return Verdict(
                "promote",
                f"{counts.retained} retained samples with {counts.disagreements} disagreements, "
                f"{counts.matches} sightings with {counts.leaks} leaks",
            )
    if elapsed < terms.seconds:
        return None
    retained = 0 if seen is None else seen.counts.retained
    return Verdict(
        "return", f"only {retained} of {terms.samples} retained samples in {terms.seconds:g} s"
    )
