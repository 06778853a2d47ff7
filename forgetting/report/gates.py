"""The gates of a release: which figures of a report must be within which limits.

A gate fails if the data show that its limit is exceeded.

- Forgotten classes are judged by the lower end of the Wilson 95 % interval. So one leaked image
  among few isn't taken for a rate. (Without a leaked image the lower end is 0.)
- Retained classes are judged by the point estimate. One lost image is always allowed, even if it is
  more than the limit. A task may lose what earlier tasks had gained over the bare backbone.

- A class is forgotten only if the weights say so: its gates judge the figures with every feature
  edit taken out, and again as served. A provisional release, which stands in until the weights
  have forgotten, is judged as served.

A gate whose figure is missing fails. If there are too few images to tell, also if all of them
together would not exceed the limit, a gate passes, and its advice says that it was not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forgetting.measure.accuracy import Share, drop
from forgetting.report.figures import Report
from forgetting.report.leaks import (
    NEIGHBOUR,
    NEIGHBOUR_LAST,
    PROBE,
    PROBE_LAST,
    PROTOTYPES,
    VERIFIED,
    Leaks,
)


@dataclass(frozen=True)
class GateConfig:
    """Limits. All are shares in 0..1, except `least_images`.

    Attributes:
        acc_f: Highest accuracy on this task's classes, by the weights and as served.
        acc_o: The same on classes that earlier tasks forgot.
        worst_class: The same on any one class under erasure.
        acc_r_drop: Largest loss on retained classes by this task, against the release before it or
            the bare backbone, whichever is lower.
        acc_r_total_drop: Largest loss on retained classes against the bare backbone.
        near_drop: Like `acc_r_drop`, on the retained classes most like this task's.
        confidence_drop: Largest loss of retained images that win by the head's margin, against the
            bare backbone; for a head without one, of those named rightly with a probability of at
            least one half.
        dump_share: Largest share of the forget images that one retained class may receive. It may
            always receive `dump_rise` more than with the backbone's answers only masked.
        dump_rise: See `dump_share`.
        probe: Most that a 5-shot probe may win back, as a share of what it wins from the bare
            backbone, both above chance.
        prototypes: The same for 5-shot prototypes from images that the method never saw.
        nearest: The same for the nearest training image, at the feature and at the last block.
        verification: The same for the AUC of pairs of one person against pairs of two, both above
            one half.
        ece_rise: Largest rise of the calibration error on retained classes over the bare backbone.
        least_images: With fewer forget test images than this, dump and leaks aren't judged.
    """

    acc_f: float = 0.01
    acc_o: float = 0.01
    worst_class: float = 0.05
    acc_r_drop: float = 0.01
    acc_r_total_drop: float = 0.03
    near_drop: float = 0.03
    confidence_drop: float = 0.03
    dump_share: float = 0.20
    dump_rise: float = 0.10
    probe: float = 0.90
    prototypes: float = 0.75
    nearest: float = 0.90
    verification: float = 0.90
    ece_rise: float = 0.02
    least_images: int = 10


@dataclass(frozen=True)
class GateResult:
    """One verdict.

    Attributes:
        name: Name of the gate.
        passed: Whether a release may have this value.
        value: What is compared with `limit`; None if nothing was measured or judged.
        limit: The highest `value` that passes.
        advice: What to try if it failed; why if it wasn't judged; else empty.
    """

    name: str
    passed: bool
    value: float | None
    limit: float
    advice: str

    @property
    def sentence(self) -> str:
        """A sentence for the operator: which gate, by how much, and what to try."""
        found = "was not measured" if self.value is None else f"is {self.value:.4f}"
        return f"{self.name} {found}, limit {self.limit:.4f}: {self.advice}"


def judge(
    report: Report, config: GateConfig, *, provisional: bool = False
) -> tuple[GateResult, ...]:
    """Judge all gates, in the order in which they are printed. A release must pass every one.

    `provisional`: the release stands in until the weights have forgotten; leave out their gates.
    """
    gates = [
        _forgotten("acc_f", report.acc_f_after, config.acc_f),
        _worst("worst_class", report.by_subject, config.worst_class),
    ]
    if report.acc_o_after is not None:
        gates.append(_earlier("acc_o", report.acc_o_after, config.acc_o))
    if not provisional:
        gates = [*_by_weights(report, config), *gates]
    leaks = [] if provisional and report.leaks_served is not None else [("", report.leaks)]
    if report.leaks_served is not None:
        leaks.append(("_served", report.leaks_served))
    bare, previous, after = report.acc_r_before, report.acc_r_previous, report.acc_r_after
    near, least = _lower(report.near_before, report.near_previous), config.least_images
    return (
        *gates,
        _retained("acc_r_drop", _lower(bare, previous), after, config.acc_r_drop),
        _retained("acc_r_total_drop", bare, after, config.acc_r_total_drop),
        _retained("near_drop", near, report.near_after, config.near_drop),
        _dump(report, config),
        _confidence(report, config.confidence_drop),
        *(
            _leak(f"{name}{of}", found, figure, share=share, least=least)
            for of, found in leaks
            for name, figure, share in (
                ("probe", PROBE, config.probe),
                ("probe_last_block", PROBE_LAST, config.probe),
                ("prototypes", PROTOTYPES, config.prototypes),
                ("nearest", NEIGHBOUR, config.nearest),
                ("nearest_last_block", NEIGHBOUR_LAST, config.nearest),
                ("verification", VERIFIED, config.verification),
            )
        ),
        _calibration(report, config.ece_rise),
    )


def _by_weights(report: Report, config: GateConfig) -> list[GateResult]:
    gates = [
        _forgotten("acc_f_weights", report.acc_f_weights, config.acc_f),
        _worst("worst_class_weights", report.by_subject_weights, config.worst_class),
    ]
    if report.acc_o_weights is not None:
        gates.append(_earlier("acc_o_weights", report.acc_o_weights, config.acc_o))
    return gates


_ADVICE = {
    "acc_f": "give more forget images, or raise the margin or the number of steps",
    "worst_class": "one class resists: give more images of it, or forget it by itself",
    "acc_o": "an earlier class came back: give more of its images to the replay",
    "acc_r_drop": "the retained classes lost too much: give more replay images, or lower the rate",
    "acc_r_total_drop": "the tasks so far cost too much together: give more replay images, or "
    "lower the rate",
    "near_drop": "the classes most like the forgotten ones lost too much: give more replay images "
    "of them, or lower the margin or the rate",
    "dump_share": "too many forget images go to one retained class; use more replay or another "
    "seed",
    "confidence_drop": "the retained classes' answers are right but less sure: give more replay "
    "images, or lower disperse and relearn",
    "probe": "a new head reads the classes from the features: raise disperse or relearn, or give "
    "more forget images",
    "prototypes": "a few images bring the classes back: raise disperse or relearn, or give more "
    "forget images",
    "probe_last_block": "a new head reads the classes from the last block: raise deep_share, "
    "disperse or relearn",
    "nearest": "images of a class lie together in the features: raise disperse or relearn, or give "
    "more forget images",
    "nearest_last_block": "images of a class lie together at the last block: raise deep_share, "
    "disperse or relearn",
    "verification": "pairs of a forgotten person still match: raise disperse or relearn, or give "
    "more forget images",
    "ece_rise": "the model's confidence on retained classes no longer fits: give more replay "
    "images, or lower the rate",
}
# Figures that a model or a set may not allow.
_NOT_ALWAYS = {
    PROBE_LAST: "this model can't be cut between its blocks",
    NEIGHBOUR_LAST: "this model can't be cut between its blocks",
    VERIFIED: "no forgotten class has two test images",
}
_UNMEASURED = "nothing was measured; there must be test images of the classes"


def _lower(first: Share, second: Share) -> Share:
    return min(first, second, key=lambda share: share.value)


def _forgotten(name: str, share: Share, limit: float) -> GateResult:
    if not share.n:
        return GateResult(name, False, None, limit, _UNMEASURED)
    return _gate(name, share.interval[0], limit)


def _worst(name: str, found: Mapping[str, Share], limit: float) -> GateResult:
    """Judge the worst class by its interval. Every class of this task must have been measured."""
    shares = found.values()
    if not shares or any(not share.n for share in shares):
        missing = sum(not share.n for share in shares)
        advice = f"{missing} classes under erasure have no test image; {_UNMEASURED}"
        return GateResult(name, False, None, limit, advice)
    return _gate(name, max(share.interval[0] for share in shares), limit)


def _earlier(name: str, share: Share, limit: float) -> GateResult:
    if not share.n:
        advice = "not judged: no image of a class forgotten earlier is left"
        return GateResult(name, True, None, limit, advice)
    return _gate(name, share.interval[0], limit)


def _retained(name: str, before: Share, after: Share, limit: float) -> GateResult:
    if not after.n:
        return GateResult(name, False, None, limit, _UNMEASURED)
    return _gate(name, drop(before, after), max(limit, 1 / after.n))


def _confidence(report: Report, limit: float) -> GateResult:
    if report.margin_r_before is not None and report.margin_r_after is not None:
        return _retained("confidence_drop", report.margin_r_before, report.margin_r_after, limit)
    return _retained("confidence_drop", report.sure_r_before, report.sure_r_after, limit)


def _dump(report: Report, config: GateConfig) -> GateResult:
    limit = max(config.dump_share, report.dump_before.value + config.dump_rise)
    few = _too_few("dump_share", report.dump.n, limit=limit, least=config.least_images)
    return few or _gate("dump_share", report.dump.interval[0], limit)


def _leak(name: str, leaks: Leaks | None, figure: str, *, share: float, least: int) -> GateResult:
    """`share` is relative to the bare backbone's figure above chance. The limit is absolute."""
    if leaks is None:
        return GateResult(name, False, None, share, "the attacks were not run: measure them")
    if leaks.unmeasurable is not None:
        return GateResult(name, True, None, share, f"not judged: {leaks.unmeasurable}")
    found = leaks.figures.get(figure)
    if found is None and figure in _NOT_ALWAYS and NEIGHBOUR in leaks.figures:
        return GateResult(name, True, None, share, f"not judged: {_NOT_ALWAYS[figure]}")
    if found is None:
        return GateResult(name, False, None, share, "the attack was not run: measure it")
    limit = found.allowed(share)
    if not found.n:
        return GateResult(name, True, None, limit, "not judged: no class has two test images")
    few = _too_few(name, found.n, limit=limit, least=least)
    if few is None and Share(found.n, found.n).interval[0] <= limit:
        advice = f"not judged: even {found.n} hits of {found.n} test images wouldn't show it"
        return GateResult(name, True, None, limit, advice)
    return few or _gate(name, found.low, limit)


def _calibration(report: Report, limit: float) -> GateResult:
    n = report.acc_r_after.n
    if not n:
        return GateResult("ece_rise", False, None, limit, _UNMEASURED)
    return _gate("ece_rise", report.ece_after - report.ece_before, max(limit, 1 / n))


def _too_few(name: str, n: int, *, limit: float, least: int) -> GateResult | None:
    if 0 < n < least:
        advice = f"not judged: {n} test images are too few, {least} are needed"
        return GateResult(name, True, None, limit, advice)
    return None if n else GateResult(name, False, None, limit, _UNMEASURED)


def _gate(name: str, value: float, limit: float) -> GateResult:
    # In binary fractions 1 - 0.99 > 0.01, hence the tolerance. NaN doesn't pass.
    passed = value <= limit + 1e-9
    return GateResult(
        name,
        passed,
        value,
        limit,
        "" if passed else _ADVICE[name.removesuffix("_weights").removesuffix("_served")],
    )
