"""The bars that `lethe` must meet, judged from the cells, whose figures are by the weights alone.

If a row, a task or an attack is missing for a bar, it counts as not measured, never as met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from forgetting.bench.cell import TaskFigures
from forgetting.bench.protocol import BACKBONE, RETRAINED, ROWS
from forgetting.bench.summary import Column, Summary, leak

OURS, CLOSED_FORM, PUBLISHED, MASK = "lethe", "project", "gs_lora_published", "head_mask"
# H of `lethe` is compared with all methods but masks. (The closed form has none by the weights.)
_NOT_COMPARED = {OURS, MASK, *ROWS}
# What attacks may win back above the model that never saw the classes.
_ABOVE_NEVER_SAW = 0.05
_LEAKS = (
    ("probe_feature", "20-shot probe, feature", _ABOVE_NEVER_SAW),
    ("probe_last", "20-shot probe, last block", _ABOVE_NEVER_SAW),
    ("nn_feature", "1-NN, feature", _ABOVE_NEVER_SAW),
    ("nn_last", "1-NN, last block", _ABOVE_NEVER_SAW),
    ("pra5", "5-shot prototypes", _ABOVE_NEVER_SAW),
    *((f"block5_{n}", f"last block, 5 shots, {n} steps", _ABOVE_NEVER_SAW) for n in (10, 30, 100)),
    *((f"retain_only_{n}", f"retain only, {n} steps", _ABOVE_NEVER_SAW) for n in (10, 30, 100)),
    ("tar_f", "TAR at FAR 0.1 %, forgotten", 0.03),
)


@dataclass(frozen=True)
class Bar:
    """One bar: what was asked and what was found. `met` is None if something wasn't measured."""

    figure: str
    bar: str
    found: str
    met: bool | None


def judge(summary: Summary, setting: str) -> tuple[Bar, ...]:
    """Judge every bar of one setting. There are none if `lethe` isn't among the rows."""
    columns = [column for column in summary.columns if column.setting == setting]
    if not columns or not summary.of(OURS, setting):
        return ()
    few = "shot" in setting
    bars = (
        _h(summary, columns),
        _most(summary, columns, "Acc_f", lambda t: t.acc_f.value),
        *([_most(summary, columns[1:], "Acc_o", _acc_o)] if columns[1:] else []),
        _lost(summary, columns, "Acc_r", _plain, each=0.03 if few else 0.01),
        _lost(summary, columns, "Acc_r by the margin", _by_margin, each=0.03 if few else 0.01),
        _lost(summary, columns, "Acc_r at the threshold", _sure, each=0.03 if few else 0.01),
        _groups(summary, columns),
        *(_leak(summary, columns[-1], *leak) for leak in _LEAKS),
        _verified(summary, columns[-1]),
        _seconds(summary, setting, columns),
        _closed_form(summary, setting),
    )
    broken = [cell.seed for cell in summary.of(OURS, setting) if cell.failed]
    if not broken:
        return bars
    *ours, closed_form = bars
    return (*(_spoilt(bar, broken) for bar in ours), closed_form)


def _spoilt(bar: Bar, seeds: list[int]) -> Bar:
    """The bar isn't met if some seeds broke down, whatever the other seeds reached."""
    found = f"{bar.found}, without seed {', '.join(map(str, seeds))}, which broke down"
    return replace(bar, found=found, met=None if bar.met is None else False)


def _h(summary: Summary, columns: list[Column]) -> Bar:
    worst: tuple[float, str] | None = None
    others = [name for name in summary.methods if name not in _NOT_COMPARED]
    complete = bool(others)
    for column in columns:
        own = summary.mean(OURS, column, lambda t: t.h)
        for name in others:
            other = summary.mean(name, column, lambda t: t.h)
            if own is None:
                complete = False
            elif other is not None:  # a method that broke down isn't compared
                lead = own.mean - other.mean
                if worst is None or lead < worst[0]:
                    worst = (lead, f"{lead:+.2%} against {name} in {column.name}")
    met = worst[0] > 0 if worst is not None and complete else None
    return Bar(
        "H",
        f"above every method that changes weights ({len(others)}), in every task",
        "not measured" if worst is None else f"smallest lead {worst[1]}",
        met,
    )


def _acc_o(task: TaskFigures) -> float | None:
    return None if task.acc_o is None else task.acc_o.value


def _most(
    summary: Summary,
    columns: list[Column],
    title: str,
    read: Callable[[TaskFigures], float | None],
) -> Bar:
    found = _by_column(summary, columns, read)
    if found is None:
        return Bar(title, "at most 1 %", "not measured", None)
    return Bar(title, "at most 1 %", f"at most {max(found):.2%}", max(found) <= 0.01)


def _plain(task: TaskFigures) -> tuple[float, float] | None:
    return task.acc_r_before.value, task.acc_r.value


def _by_margin(task: TaskFigures) -> tuple[float, float] | None:
    return (task.margin.acc_r_before, task.margin.acc_r) if task.margin else None


def _sure(task: TaskFigures) -> tuple[float, float] | None:
    if task.sure_r is None or task.sure_r_before is None:
        return None
    return task.sure_r_before, task.sure_r


def _lost(
    summary: Summary,
    columns: list[Column],
    title: str,
    read: Callable[[TaskFigures], tuple[float, float] | None],
    *,
    each: float,
) -> Bar:
    """The loss against the bare backbone on the same images. `each` is per task, thrice in all."""

    def lost(task: TaskFigures) -> float | None:
        pair = read(task)
        return None if pair is None else pair[0] - pair[1]

    found = _by_column(summary, columns, lost)
    bar = f"at most {each:.0%} lost a task, {3 * each:.0%} after the last"
    if found is None:
        return Bar(title, bar, "not measured", None)
    steps = [now - before for before, now in zip([0.0, *found], found, strict=False)]
    return Bar(
        title,
        bar,
        f"at most {max(steps):.2%} by a task; {found[-1]:.2%} after the last",
        max(steps) <= each + 1e-9 and found[-1] <= 3 * each + 1e-9,
    )


def _groups(summary: Summary, columns: list[Column]) -> Bar:
    def kept(task: TaskFigures) -> float | None:
        if task.groups_kept is None or not task.groups_total:
            return None
        return task.groups_kept / task.groups_total

    found = _by_column(summary, columns, kept)
    if found is None:
        return Bar("groups kept", "at most two thirds", "not measured", None)
    met = max(found) <= 2 / 3 + 1e-9
    return Bar("groups kept", "at most two thirds", f"at most {max(found):.0%}", met)


def _leak(summary: Summary, column: Column, key: str, title: str, above: float) -> Bar:
    bar = f"at most the retrained model's + {above:.0%}"
    own, never = (summary.mean(name, column, leak(key)) for name in (OURS, RETRAINED))
    if own is None or never is None:
        return Bar(title, bar, "not measured", None)
    found = f"{own.mean:.1%} against {never.mean:.1%}"
    return Bar(title, bar, found, own.mean <= never.mean + above)


def _verified(summary: Summary, column: Column) -> Bar:
    title, bar = "TAR at FAR 0.1 %, retained", "at most 1 % below the backbone's"
    own, bare = (summary.mean(name, column, leak("tar_r")) for name in (OURS, BACKBONE))
    if own is None or bare is None:
        return Bar(title, bar, "not measured", None)
    found = f"{own.mean:.1%} against {bare.mean:.1%}"
    return Bar(title, bar, found, own.mean >= bare.mean - 0.01)


def _seconds(summary: Summary, setting: str, columns: list[Column]) -> Bar:
    bar = f"{PUBLISHED} takes at least 5 times as long, at an H that isn't better"
    own, other = (_cpu(summary, name, setting) for name in (OURS, PUBLISHED))
    leads = [
        a.mean - b.mean
        for column in columns
        if (a := summary.mean(OURS, column, lambda t: t.h)) is not None
        and (b := summary.mean(PUBLISHED, column, lambda t: t.h)) is not None
    ]
    if not own or other is None or not leads:
        return Bar("CPU seconds a task", bar, "not measured", None)
    found = f"{other / own:.1f} times ({other:.1f} s and {own:.1f} s)"
    return Bar("CPU seconds a task", bar, found, other / own >= 5 and min(leads) >= 0)


def _closed_form(summary: Summary, setting: str) -> Bar:
    bar = f"at most 1/20 of {PUBLISHED}"
    own, other = (_cpu(summary, name, setting) for name in (CLOSED_FORM, PUBLISHED))
    if own is None or not other:
        return Bar("CPU seconds of the closed form", bar, "not measured", None)
    found = f"{own:.2f} s, 1/{other / own:.0f}" if own else f"{own:.2f} s"
    return Bar("CPU seconds of the closed form", bar, found, own <= other / 20)


def _cpu(summary: Summary, method: str, setting: str) -> float | None:
    found = summary.over_tasks(method, setting, lambda t: t.cpu_seconds)
    return None if found is None else found.mean


def _by_column(
    summary: Summary, columns: list[Column], read: Callable[[TaskFigures], float | None]
) -> list[float] | None:
    """The mean over seeds in each column; None if a column is missing."""
    found = [summary.mean(OURS, column, read) for column in columns]
    means = [e.mean for e in found if e is not None]
    return means if len(means) == len(columns) and means else None
