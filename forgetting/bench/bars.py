"""The bars that `lethe` must meet, judged from the cells.

If a row, a task or an attack is missing for a bar, it counts as not measured, never as met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from forgetting.bench.cell import TaskFigures
from forgetting.bench.protocol import RETRAINED, ROWS
from forgetting.bench.summary import Column, Summary, leak

OURS, CLOSED_FORM, PUBLISHED, MASK = "lethe", "project", "gs_lora_published", "head_mask"
# H of `lethe` is compared with all methods that change weights and aren't ours.
_NOT_COMPARED = {OURS, CLOSED_FORM, MASK, *ROWS}


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
        *([_most(summary, columns[-1:], "Acc_o, last task", _acc_o)] if columns[1:] else []),
        _acc_r(summary, columns, limit=0.03 if few else 0.01),
        _stored(summary, columns),
        _groups(summary, columns),
        *(
            bar
            for key, title in (("recovery", "recovery"), ("probe20", "20-shot probe"))
            + (("pra5", "5-shot relearning"),)
            for bar in _leak(summary, columns[-1], key, title)
        ),
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


def _acc_r(summary: Summary, columns: list[Column], *, limit: float) -> Bar:
    by_task = _by_column(summary, columns, lambda t: t.acc_r_previous.value - t.acc_r.value)
    total = _by_column(summary, columns, lambda t: t.acc_r_before.value - t.acc_r.value)
    bar = f"at most {limit:.0%} lost by each task, and that times its number in all"
    if by_task is None or total is None:
        return Bar("Acc_r", bar, "not measured", None)
    within = all(lost <= limit * (i + 1) for i, lost in enumerate(total))
    return Bar(
        "Acc_r",
        bar,
        f"at most {max(by_task):.2%} by a task; {total[-1]:.2%} after the last",
        max(by_task) <= limit and within,
    )


def _stored(summary: Summary, columns: list[Column]) -> Bar:
    found = _by_column(summary, columns, lambda t: t.stored / t.parameters)
    if found is None:
        return Bar("tunable ratio stored", "at most 1.28 %", "not measured", None)
    return Bar(
        "tunable ratio stored", "at most 1.28 %", f"at most {max(found):.2%}", max(found) <= 0.0128
    )


def _groups(summary: Summary, columns: list[Column]) -> Bar:
    def kept(task: TaskFigures) -> float | None:
        if task.groups_kept is None or not task.groups_total:
            return None
        return task.groups_kept / task.groups_total

    found = _by_column(summary, columns, kept)
    if found is None:
        return Bar("groups kept", "at most half", "not measured", None)
    return Bar("groups kept", "at most half", f"at most {max(found):.0%}", max(found) <= 0.5)


def _leak(summary: Summary, column: Column, key: str, title: str) -> tuple[Bar, Bar]:
    own, never, published = (
        summary.mean(name, column, leak(key)) for name in (OURS, RETRAINED, PUBLISHED)
    )

    def against(other: float | None, words: str, *, factor: float) -> Bar:
        if own is None or other is None:
            return Bar(title, words, "not measured", None)
        limit = factor * other
        met = own.mean <= limit if factor == 1 else own.mean < limit
        return Bar(title, words, f"{own.mean:.1%} against {other:.1%}", met)

    return (
        against(never.mean if never else None, "at or below the retrained model", factor=1),
        against(published.mean if published else None, f"below half of {PUBLISHED}", factor=0.5),
    )


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
