"""The report of a forget task: what it did to held-out images, and the gates that judge it.

Every accuracy is plain top-1 before any mask, on test images that were read once. Classes under
erasure appear by subject only, retained classes not at all.

A gate fails where the data show that its limit is exceeded: accuracies of forgotten classes are
judged by the lower end of their Wilson 95 % interval, so that one leaked image among few is not
taken for a rate (with no leaked image the lower end is 0). The retained side is judged by the
point estimate, with one image to spare where a single image weighs more than the limit; what an
earlier task gained over the bare backbone may be given back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forgetting.measure import Share, drop, h_mean


@dataclass(frozen=True)
class Report:
    """The figures of one task.

    Attributes:
        method: Name of the method.
        backbone: Its fingerprint.
        data_digest: Of the image set.
        seed: Of the run.
        acc_r_before: Retained classes, the bare backbone.
        acc_r_previous: Retained classes, with the stack below this task's adapter.
        acc_r_after: Retained classes, with this task's adapter.
        acc_f_before: Classes of this task, the bare backbone.
        acc_f_after: Classes of this task, adapted.
        acc_o_before: Classes forgotten earlier, the bare backbone; None where there are none.
        acc_o_after: Classes forgotten earlier, adapted; None where there are none.
        by_subject: Accuracy after, for each subject of this task and of earlier ones.
        dump: Share of this task's images that go to the retained class that receives most.
        dump_before: The same, where the backbone's answers were merely masked.
        groups_kept: Groups with an update.
        groups_total: Groups of the backbone.
        adapter_bytes: Size of the adapter's files.
        seconds: Of training.
        steps: Of the optimizer.
        images: Number of images by use: `forget_train`, `retain_train`, `forget_test`, ...
    """

    method: str
    backbone: str
    data_digest: str
    seed: int
    acc_r_before: Share
    acc_r_previous: Share
    acc_r_after: Share
    acc_f_before: Share
    acc_f_after: Share
    acc_o_before: Share | None
    acc_o_after: Share | None
    by_subject: Mapping[str, Share]
    dump: Share
    dump_before: Share
    groups_kept: int
    groups_total: int
    adapter_bytes: int
    seconds: float
    steps: int
    images: Mapping[str, int]

    @property
    def drop_f(self) -> float:
        """Acc_f(before) - Acc_f(after)."""
        return drop(self.acc_f_before, self.acc_f_after)

    @property
    def h(self) -> float:
        """2 * Acc_r * Drop / (Acc_r + Drop)."""
        return h_mean(self.acc_r_after.value, self.drop_f)

    @property
    def worst_subject(self) -> tuple[str, Share]:
        """The class under erasure that is still recognised most."""
        name = max(sorted(self.by_subject), key=lambda s: self.by_subject[s].value)
        return name, self.by_subject[name]


@dataclass(frozen=True)
class GateConfig:
    """Limits, all shares in 0..1.

    Attributes:
        acc_f: Most accuracy on this task's classes.
        acc_o: Most accuracy on classes forgotten earlier.
        worst_class: Most accuracy on any one class under erasure.
        acc_r_drop: Most loss on retained classes by this task, against the release before it or
            the bare backbone, whichever is lower.
        acc_r_total_drop: Most loss on retained classes against the bare backbone.
        dump_share: Most of the forget images that one retained class may receive; it may always
            receive `dump_rise` more than it did when the backbone's answers were merely masked.
        dump_rise: See `dump_share`.
        dump_least: Fewest forget test images from which the dump share is judged.
    """

    acc_f: float = 0.01
    acc_o: float = 0.01
    worst_class: float = 0.05
    acc_r_drop: float = 0.01
    acc_r_total_drop: float = 0.03
    dump_share: float = 0.20
    dump_rise: float = 0.10
    dump_least: int = 10


@dataclass(frozen=True)
class GateResult:
    """One verdict: `value` is compared with `limit`; `advice` says what to try if it failed."""

    name: str
    passed: bool
    value: float
    limit: float
    advice: str


def judge(report: Report, config: GateConfig) -> tuple[GateResult, ...]:
    """All gates, in the order in which they are printed. A release needs every one passed."""
    gates = [
        _forgotten("acc_f", report.acc_f_after, config.acc_f),
        _forgotten("worst_class", report.worst_subject[1], config.worst_class),
    ]
    if report.acc_o_after is not None:
        gates.append(_forgotten("acc_o", report.acc_o_after, config.acc_o))
    bare, previous, after = report.acc_r_before, report.acc_r_previous, report.acc_r_after
    start = min(bare, previous, key=lambda share: share.value)
    gates += [
        _retained("acc_r_drop", start, after, config.acc_r_drop),
        _retained("acc_r_total_drop", bare, after, config.acc_r_total_drop),
    ]
    if report.dump.n >= config.dump_least:
        limit = max(config.dump_share, report.dump_before.value + config.dump_rise)
        low = report.dump.interval[0]
        advice = "too many forget images go to one retained class; use more replay or another seed"
        gates.append(_gate("dump_share", low, limit, advice))
    return tuple(gates)


def _forgotten(name: str, share: Share, limit: float) -> GateResult:
    advice = {
        "acc_f": "give more forget images, or raise the margin or the number of steps",
        "worst_class": "one class resists: give more images of it, or forget it by itself",
        "acc_o": "an earlier class came back: give more of its images to the replay",
    }[name]
    low = share.interval[0] if share.n else 1.0  # nothing measured, nothing passed
    return _gate(name, low, limit, advice)


def _retained(name: str, before: Share, after: Share, limit: float) -> GateResult:
    advice = "the retained classes lost too much: give more replay images, or lower the rate"
    one_image = 1 / after.n if after.n else 0.0
    value = drop(before, after) if after.n else 1.0
    return _gate(name, value, max(limit, one_image), advice)


def _gate(name: str, value: float, limit: float, advice: str) -> GateResult:
    # The tolerance is for 1 - 0.99 > 0.01 in binary fractions.
    passed = value <= limit + 1e-9
    return GateResult(name, passed, value, limit, "" if passed else advice)


def to_json(report: Report, gates: Sequence[GateResult]) -> dict[str, Any]:
    """Plain JSON values; every share as hits, n, value and 95 % interval."""
    plain = {
        name: _plain(value)
        for name, value in vars(report).items()
        if not isinstance(value, Mapping)
    }
    subject, worst = report.worst_subject
    return {
        **plain,
        "by_subject": {s: _plain(share) for s, share in sorted(report.by_subject.items())},
        "images": dict(report.images),
        "drop_f": report.drop_f,
        "h": report.h,
        "worst_subject": {"subject": subject, **_plain(worst)},
        "gates": [asdict(gate) for gate in gates],
        "passed": all(gate.passed for gate in gates),
    }


def to_markdown(report: Report, gates: Sequence[GateResult]) -> str:
    """A one-page card."""
    verdict = "accepted" if all(gate.passed for gate in gates) else "refused"
    rows = [
        ("retained", report.acc_r_before, report.acc_r_previous, report.acc_r_after),
        ("forgotten", report.acc_f_before, None, report.acc_f_after),
        ("forgotten earlier", report.acc_o_before, None, report.acc_o_after),
    ]
    lines = [
        f"# Forget report: {verdict}",
        "",
        f"Method `{report.method}`, seed {report.seed}, backbone `{report.backbone[:19]}`.",
        "Top-1 accuracy on held-out images, before any mask, with 95 % intervals.",
        "",
        "| classes | images | backbone | release before | release after |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {after.n} | {_text(bare)} | {_text(previous)} | {_text(after)} |"
        for name, bare, previous, after in rows
        if after is not None
    ]
    subject, worst = report.worst_subject
    lines += [
        "",
        f"- H {report.h:.4f}; worst subject `{subject}` {_text(worst)}",
        f"- most-hit retained class receives {_text(report.dump)} of the forget images "
        f"({report.dump_before.value:.1%} if merely masked)",
        f"- {report.groups_kept} of {report.groups_total} groups, {report.adapter_bytes:,} bytes, "
        f"{report.steps} steps, {report.seconds:.1f} s",
        "- images: " + ", ".join(f"{name} {n}" for name, n in report.images.items()),
        "",
        "| gate | value | limit | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {g.name} | {g.value:.4f} | {g.limit:.4f} | {'passed' if g.passed else g.advice} |"
        for g in gates
    ]
    return "\n".join(lines) + "\n"


def dumps(report: Report, gates: Sequence[GateResult]) -> str:
    """`to_json` as text."""
    return json.dumps(to_json(report, gates), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: object) -> Any:
    if isinstance(value, Share):
        low, high = value.interval
        return {"hits": value.hits, "n": value.n, "value": value.value, "low": low, "high": high}
    return value


def _text(share: Share | None) -> str:
    if share is None:
        return ""
    low, high = share.interval
    return f"{share.value:.2%} ({low:.1%} to {high:.1%})"
