"""The tables as Markdown: accuracies as in the papers, then leaks, costs and bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from forgetting.bench.bars import MASK, PUBLISHED, judge
from forgetting.bench.cell import TaskFigures
from forgetting.bench.leaks import LEAK_COLUMNS
from forgetting.bench.paper import PaperRow
from forgetting.bench.protocol import BACKBONE, RETRAINED
from forgetting.bench.summary import Column, Estimate, Read, Summary, leak_reader
from forgetting.bench.tuning import Choice

_Form = Callable[[Estimate | None], str]
_NOTES = {
    BACKBONE: "nothing forgotten",
    RETRAINED: "same recipe and first weights, never saw the forgotten classes: the reference",
    MASK: "changes no weights, so it tops H by construction; the leaks are the backbone's",
}


def markdown(
    summary: Summary,
    *,
    title: str,
    facts: Sequence[str],
    paper: Sequence[PaperRow] = (),
    choices: Mapping[tuple[str, str], Choice] | None = None,
) -> str:
    """The whole page.

    Args:
        summary: The cells.
        title: Title of the page.
        facts: Sentences about data, backbone, seeds and budget.
        paper: The papers' rows, in percent. They are printed for the tasks of the same name.
        choices: Tuned settings by (setting, method).
    """
    parts = [f"# {title}", "\n".join(f"- {fact}" for fact in facts)]
    # On faces the papers count with the head's margin. Their rows belong in that table.
    margin = any(task.margin for cell in summary.cells for task in cell.tasks)
    parts += ["## Accuracies", _accuracies(summary, () if margin else paper)]
    if margin:
        parts += ["## Accuracies with the head's margin", _margins(summary, paper)]
    if any(task.sure_r is not None for cell in summary.cells for task in cell.tasks):
        parts += ["## Retained at a threshold", _sure(summary)]
    if any(task.served for cell in summary.cells for task in cell.tasks):
        parts += ["## As served, with feature edits", _served(summary)]
    for column in summary.columns:
        if any(t.leak for m in summary.methods for t in summary.tasks(m, column).values()):
            title = f"## What leaks after {column.name} of {column.setting}"
            parts += [title, _leaks(summary, column)]
    for setting in summary.settings:
        parts += [f"## What it costs, {setting}", _costs(summary, setting)]
        bars = judge(summary, setting)
        if bars:
            rows = [[b.figure, b.bar, b.found, _met(b.met)] for b in bars]
            head = ["figure", "bar", "`lethe`", "met"]
            parts += [f"## Bars, {setting}", _table(head, rows)]
    if choices:
        parts += ["## Settings chosen on validation images", _choices(choices)]
    notes = [f"- `{name}`: {_NOTES[name]}" for name in summary.methods if name in _NOTES]
    notes += [
        f"- `{cell.method}`, seed {cell.seed}, {cell.setting}, ended early: {cell.failed}"
        for cell in summary.cells
        if cell.failed
    ]
    return "\n\n".join([*parts, "## Notes", "\n".join(notes)]) + "\n"


def _accuracies(summary: Summary, paper: Sequence[PaperRow]) -> str:
    reads: dict[str, Read] = {
        "H": lambda t: t.h,
        "Acc_r": lambda t: t.acc_r.value,
        "Acc_f": lambda t: t.acc_f.value,
        "Acc_o": lambda t: None if t.acc_o is None else t.acc_o.value,
    }
    if any(task.acc_m for cell in summary.cells for task in cell.tasks):
        reads["Acc_m"] = lambda t: None if t.acc_m is None else t.acc_m.value
    last = summary.columns[-1]
    worst = {m: _percent(summary.mean(m, last, lambda t: t.worst_class)) for m in summary.methods}
    after = (
        "In percent, plain top-1 before any mask; mean over seeds ± half of the 95 % t-interval. "
        "The worst class is that of the last task."
    )
    return _by_task(summary, reads, paper, more=("worst class", worst)) + "\n\n" + after


def _margins(summary: Summary, paper: Sequence[PaperRow]) -> str:
    reads: dict[str, Read] = {
        "H": lambda t: t.margin.h if t.margin else None,
        "Acc_r": lambda t: t.margin.acc_r if t.margin else None,
        "Acc_f": lambda t: t.margin.acc_f if t.margin else None,
        "Acc_o": lambda t: t.margin.acc_o if t.margin else None,
    }
    return _by_task(summary, reads, paper)


def _sure(summary: Summary) -> str:
    reads: dict[str, Read] = {
        "before": lambda t: t.sure_r_before,
        "after": lambda t: t.sure_r,
    }
    after = "Right, and above the threshold at which the model accepts 1 % of the strangers."
    return _by_task(summary, reads, ()) + "\n\n" + after


def _served(summary: Summary) -> str:
    reads: dict[str, Read] = {
        "Acc_r": lambda t: t.served.acc_r if t.served else None,
        "Acc_f": lambda t: t.served.acc_f if t.served else None,
        "Acc_o": lambda t: t.served.acc_o if t.served else None,
    }
    after = (
        "All other figures are by the weights alone: whoever takes the edit out has these back. "
        "A dash: the method edits no feature."
    )
    return _by_task(summary, reads, ()) + "\n\n" + after


def _by_task(
    summary: Summary,
    reads: Mapping[str, Read],
    paper: Sequence[PaperRow],
    *,
    more: tuple[str, Mapping[str, str]] | None = None,
) -> str:
    """A row for each method, with the papers' rows of the same method below it."""
    keys = [key.lower() for key in reads]

    def published(ours: str | None) -> list[list[str]]:
        own = [row for row in paper if (row.ours if row.ours in summary.methods else None) == ours]
        lines = [
            [f"*{row.title}, paper*", *(_paper_cell(row, c, keys) for c in summary.columns)]
            for row in own
        ]
        known = [line for line in lines if any(cell != "–" for cell in line[1:])]
        return [[*line, "–"] if more else line for line in known]

    rows = []
    for method in summary.methods:
        row = [f"`{method}`"]
        row += [_joined(summary, method, c, list(reads.values())) for c in summary.columns]
        rows += [[*row, more[1][method]] if more else row, *published(method)]
    rows += published(None)
    head = ["method", *(f"{c.name}: {' / '.join(reads)}" for c in summary.columns)]
    page = _table([*head, more[0]] if more else head, rows)
    if paper:
        page += "\n\nThe papers' rows are as printed: other weights, other images, one run."
    return page


def _paper_cell(row: PaperRow, column: Column, keys: Sequence[str]) -> str:
    task = row.tasks.get(column.name)
    if task is None:
        return "–"
    return " / ".join(f"{task[key]:.2f}" if key in task else "–" for key in keys)


def _leaks(summary: Summary, column: Column) -> str:
    """A row for each figure, a column for each method, and one more for each served model."""
    plain: list[tuple[str, Read, Read, _Form]] = [
        (c.title, leak_reader(c), leak_reader(c, served=True), _FORMS[c.unit]) for c in LEAK_COLUMNS
    ]
    plain += [
        ("JS, forgotten", lambda t: t.js, _nothing, _bits),
        ("dump", lambda t: t.dump.value, _nothing, _percent),
        ("ECE rise", lambda t: t.ece - t.ece_before, _nothing, _percent),
    ]
    served = [
        method
        for method in summary.methods
        if any(t.leak and t.leak["served"] for t in summary.tasks(method, column).values())
    ]
    rows = []
    for title, by_weights, as_served, form in plain:
        if all(summary.mean(m, column, by_weights) is None for m in summary.methods):
            continue
        row = [title]
        for method, read in (
            *((m, by_weights) for m in summary.methods),
            *((m, as_served) for m in served),
        ):
            text = form(summary.mean(method, column, read))
            excess = summary.excess(method, column, read, reference=by_weights)
            if excess is not None and method != RETRAINED:
                text += f" ({'+' if excess.mean >= 0 else ''}{form(excess)})"
            row.append(text)
        rows.append(row)
    after = (
        "Over all classes under erasure; in brackets the excess over the retrained reference of "
        "the same seed: far below it is a mark too. Shares in percent, JS in bits; relearn steps "
        "are cut at the longest run that is tried. A dash: not measured; the TAR needs 1,000 pairs "
        "of two people, strangers need classes that no model saw."
    )
    head = ["figure", *(f"`{m}`" for m in summary.methods), *(f"`{m}` as served" for m in served)]
    return _table(head, rows) + "\n\n" + after


def _costs(summary: Summary, setting: str) -> str:
    def mean(method: str, read: Read) -> Estimate | None:
        return summary.over_tasks(method, setting, read)

    published = mean(PUBLISHED, lambda t: t.cpu_seconds)
    rows = []
    for method in summary.methods:
        cells = summary.of(method, setting)
        seconds = mean(method, lambda t: t.cpu_seconds)
        times = "–"
        if published is not None and seconds is not None and seconds.mean > 0:
            times = f"{published.mean / seconds.mean:.1f}"
        kept, total = mean(method, _groups_kept), mean(method, _groups_total)
        rows.append(
            [
                f"`{method}`",
                _percent(mean(method, lambda t: t.trainable / t.parameters), digits=2),
                _percent(mean(method, lambda t: t.stored / t.parameters), digits=2),
                "–" if kept is None or total is None else f"{kept.mean:.1f} of {total.mean:.0f}",
                _number(mean(method, lambda t: float(t.stored_bytes)), digits=0),
                _number(mean(method, lambda t: float(t.steps)), digits=0),
                _number(seconds),
                times,
                ", ".join(str(cell.seed) for cell in cells),
            ]
        )
    head = ["method", "trainable %", "stored %", "groups kept", "bytes", "steps", "CPU s"]
    head += [f"times faster than {PUBLISHED}", "seeds"]
    return _table(head, rows) + "\n\nMeans over the tasks."


def _groups_kept(task: TaskFigures) -> float | None:
    return None if task.groups_kept is None else float(task.groups_kept)


def _groups_total(task: TaskFigures) -> float | None:
    return None if task.groups_total is None else float(task.groups_total)


def _choices(choices: Mapping[tuple[str, str], Choice]) -> str:
    rows = []
    for (setting, method), choice in choices.items():
        tried = "; ".join(
            f"{_changes(changes)}: {'broke down' if score is None else f'{score:.1%}'}"
            for changes, score in choice.candidates
        )
        rows.append([setting, f"`{method}`", _changes(choice.chosen), str(choice.seed), tried])
    return _table(["setting", "method", "chosen", "seed", "H of each candidate"], rows)


def _changes(changes: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in changes.items()) or "defaults"


def _joined(summary: Summary, method: str, column: Column, reads: Sequence[Read]) -> str:
    found = [summary.mean(method, column, read) for read in reads]
    if all(e is None for e in found):
        return "–"
    return " / ".join(_percent(e) for e in found)


def _percent(value: Estimate | None, *, digits: int = 1) -> str:
    return _number(
        None
        if value is None
        else Estimate(100 * value.mean, None if value.half is None else 100 * value.half, value.n),
        digits=digits,
    )


def _bits(value: Estimate | None) -> str:
    return _number(value, digits=3)


def _nothing(task: TaskFigures) -> float | None:
    return None


def _number(value: Estimate | None, *, digits: int = 1) -> str:
    if value is None:
        return "–"
    half = "" if value.half is None else f" ±{value.half:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{half}"


_FORMS: Mapping[str, _Form] = {"share": _percent, "steps": _number, "bits": _bits}


def _met(met: bool | None) -> str:
    return "not measured" if met is None else "yes" if met else "**no**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
