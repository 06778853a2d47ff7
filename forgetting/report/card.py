"""A report as JSON and as a one-page card in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from forgetting.measure.accuracy import Share
from forgetting.report.figures import Report
from forgetting.report.gates import GateResult
from forgetting.report.leaks import LAYER_SHOTS, BlockLeak, Leaks


def to_json(
    report: Report, gates: Sequence[GateResult], *, golden: Sequence[float] | None = None
) -> dict[str, Any]:
    """The report as plain JSON values. A share becomes hits, n, value and its 95 % interval.

    `golden` holds the adapted model's figures of the golden image (`forgetting.models.golden`).
    """
    plain = {
        name: _plain(value)
        for name, value in vars(report).items()
        if not isinstance(value, Mapping)
    }
    subject, worst = report.worst_subject
    return {
        **plain,
        **{
            name: {s: _plain(share) for s, share in sorted(getattr(report, name).items())}
            for name in ("by_subject_weights", "by_subject")
        },
        "images": dict(report.images),
        "drop_f": report.drop_f,
        "h": report.h,
        "worst_subject": {"subject": subject, **_plain(worst)},
        "gates": [asdict(gate) for gate in gates],
        "passed": all(gate.passed for gate in gates),
        **({} if golden is None else {"golden": list(golden)}),
    }


def dumps(
    report: Report, gates: Sequence[GateResult], *, golden: Sequence[float] | None = None
) -> str:
    """`to_json` as text."""
    plain = to_json(report, gates, golden=golden)
    return json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n"


def to_markdown(report: Report, gates: Sequence[GateResult]) -> str:
    """The report as a card."""
    verdict = "accepted" if all(gate.passed for gate in gates) else "refused"
    lines = [
        f"# Forget report: {verdict}",
        "",
        f"Method `{report.method}`, seed {report.seed}, backbone `{report.backbone[:19]}`.",
        "Top-1 accuracy on held-out images, before any mask, with 95 % intervals. *By the weights* "
        "is with every feature edit taken out: a class is forgotten only if that column says so.",
        "",
        *_accuracies(report),
        "",
        *_remarks(report),
        "",
        *_leaks(report.leaks),
        *_reading(report.leaks_served or report.leaks),
        "",
        "| gate | value | limit | |",
        "|---|---|---|---|",
        *(_verdict(gate) for gate in gates),
    ]
    return "\n".join(lines) + "\n"


def _accuracies(report: Report) -> list[str]:
    rows = [
        ("forgotten", report.acc_f_weights, report.acc_f_before, None, report.acc_f_after),
        ("forgotten earlier", report.acc_o_weights, report.acc_o_before, None, report.acc_o_after),
        (
            "retained",
            report.acc_r_weights,
            report.acc_r_before,
            report.acc_r_previous,
            report.acc_r_after,
        ),
        ("of these near", None, report.near_before, report.near_previous, report.near_after),
        ("of these without training images", None, report.acc_m_before, None, report.acc_m_after),
        ("retained, by the margin", None, report.margin_r_before, None, report.margin_r_after),
        (
            "retained, right and sure",
            None,
            report.sure_r_before,
            report.sure_r_previous,
            report.sure_r_after,
        ),
    ]
    return [
        "| classes | images | by the weights | backbone | release before | release after |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {after.n} | {_text(weights)} | {_text(bare)} | {_text(previous)} "
            f"| {_text(after)} |"
            for name, weights, bare, previous, after in rows
            if after is not None
        ),
    ]


def _remarks(report: Report) -> list[str]:
    subject, worst = report.worst_subject
    lines = [
        f"- H {report.h:.4f}; worst subject `{subject}` {_text(worst)}",
        f"- most-hit retained class receives {_text(report.dump)} of the forget images "
        f"({report.dump_before.value:.1%} if merely masked)",
        f"- calibration error on the retained {report.ece_before:.4f} before, "
        f"{report.ece_after:.4f} after",
        f"- still named as the backbone names them: {_text(report.leak)} of {report.leak.n} "
        f"images; forgotten names given to retained images: {_text(report.emission)}",
        f"- {report.groups_kept} of {report.groups_total} groups, {report.adapter_bytes:,} bytes, "
        f"{report.steps} steps, {report.seconds:.1f} s",
        "- images: " + ", ".join(f"{name} {n}" for name, n in report.images.items()),
    ]
    if report.unmeasured:
        lines.append(
            f"- nothing is known of {report.unmeasured} retained classes: they have no test image"
        )
    return lines


def _leaks(leaks: Leaks | None) -> list[str]:
    if leaks is None:
        return ["What attacks win back was not measured."]
    if leaks.unmeasurable is not None:
        return [f"What attacks win back can't be measured: {leaks.unmeasurable}."]
    told = f"| membership AUC | | {leaks.membership_before:.2f} | {leaks.membership_auc:.2f} | | |"
    return [
        f"What attacks with {leaks.images} training images win back of the forgotten classes; "
        "*kept* is the share of what they win from the backbone, above chance. Prototypes had "
        f"{leaks.fresh_shots} unseen images of a class.",
        "",
        "| attack | images | backbone | after | chance | kept |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {f.n} | {f.before:.1%} | {f.after:.1%} | {f.chance:.1%} | "
            f"{'' if f.kept is None else f'{f.kept:.0%}'} |"
            for name, f in leaks.figures.items()
        ),
        told,
        *_blocks(leaks.blocks),
    ]


def _blocks(blocks: Sequence[BlockLeak]) -> list[str]:
    if len(blocks) < 2:
        return []
    return [
        "",
        f"Where the classes still live: recall of a {LAYER_SHOTS}-shot probe and of the nearest "
        "training image, backbone and after.",
        "",
        "| output of | probe, backbone | probe, after | nearest, backbone | nearest, after |",
        "|---|---|---|---|---|",
        *(
            f"| {'feature' if b.after.depth is None else f'block {b.after.depth}'} "
            f"| {b.before.probe:.1%} | {b.after.probe:.1%} "
            f"| {b.before.neighbour:.1%} | {b.after.neighbour:.1%} |"
            for b in blocks
        ),
    ]


def _reading(leaks: Leaks | None) -> list[str]:
    """By what is served: a stored edit tells as much as stored pairs do."""
    if leaks is None or leaks.reading is None:
        return []
    reading = leaks.reading
    return [
        "",
        f"What the stored adapter reveals: whoever has it, the model below it and photos of "
        f"{reading.candidates} candidates finds {reading.certain:.0%} of the {reading.forgotten} "
        f"forgotten ones with certainty (AUC {reading.auc:.2f}). It is as confidential as the "
        "request.",
    ]


def _verdict(gate: GateResult) -> str:
    value = "" if gate.value is None else f"{gate.value:.4f}"
    return f"| {gate.name} | {value} | {gate.limit:.4f} | {gate.advice or 'passed'} |"


def _plain(value: object) -> Any:
    if isinstance(value, Share):
        low, high = value.interval
        return {"hits": value.hits, "n": value.n, "value": value.value, "low": low, "high": high}
    if isinstance(value, Leaks):
        figures = {
            name: {**asdict(figure), "low": figure.low, "kept": figure.kept}
            for name, figure in value.figures.items()
        }
        return {**asdict(value), "figures": figures}
    return value


def _text(share: Share | None) -> str:
    if share is None:
        return ""
    if not share.n:
        return "no images"
    low, high = share.interval
    return f"{share.value:.2%} ({low:.1%} to {high:.1%})"
