"""What becomes of a release on trial, by what live traffic has shown of its weights.

It is taken off as soon as the evidence that it leaks, or that it disagrees on retained classes
more than it may, reaches the bar: an e-value, so that one may look after every sample, and a good
release is taken off with a probability of at most 10^-bar, however long the trial. It is promoted
when so many retained samples went by without that. A trial that gets too few samples in its time
is taken off: what nobody saw is not proven. Pure; see `tally` for the counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.monitoring.tally import Counts, Findings


@dataclass(frozen=True)
class TrialTerms:
    """`samples` of retained classes to pass, within `seconds`; `bar`: log10 of an e-value."""

    samples: int
    seconds: float
    bar: float


@dataclass(frozen=True)
class Seen:
    """What was counted of the trial's weights so far, and what that proves."""

    counts: Counts
    findings: Findings


@dataclass(frozen=True)
class Verdict:
    act: Literal["promote", "return"]
    detail: str


def verdict(seen: Seen | None, *, elapsed: float, terms: TrialTerms) -> Verdict | None:
    """What to do after `elapsed` seconds; None: wait. `seen`: None before any replica reported."""
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
