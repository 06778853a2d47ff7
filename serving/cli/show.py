"""Prints the servers' answers for a person at a terminal: tables, sentences and progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Note = Callable[[Any], None]


@contextlib.contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Show that something is being done: a spinner on a terminal, a line elsewhere."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what, highlight=False)
        yield


def _bar(console: Console, *, quiet: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


@contextlib.contextmanager
def pretraining(console: Console) -> Iterator[Note]:
    """A progress bar for a pre-training; it appears with the first step."""
    with _bar(console) as bar:
        task = None

        def note(progress: Any) -> None:
            nonlocal task
            if task is None:
                console.print("training the backbone (once; it is kept)", highlight=False)
                task = bar.add_task("backbone", total=progress.steps, note="")
            text = f"loss {progress.loss:.3f}"
            if progress.val_accuracy is not None:
                text += f", validation {progress.val_accuracy:.1%}"
            bar.update(task, completed=progress.step, note=text)

        yield note


@contextlib.contextmanager
def training(console: Console, *, quiet: bool = False) -> Iterator[Note]:
    """A progress bar for a job; the yielded function takes the job's views."""
    with _bar(console, quiet=quiet) as bar:
        task = bar.add_task("waiting", total=1, note="")

        def note(view: dict[str, Any]) -> None:
            progress = view.get("progress") or {}
            text = f"{view['ahead']} ahead" if view["ahead"] else ""
            if "val_acc_f" in progress:
                text = (
                    f"validation Acc_f {progress['val_acc_f']:.0%}, "
                    f"Acc_r {progress['val_acc_r']:.0%}"
                )
            bar.update(
                task,
                description=progress.get("phase", view["state"]),
                completed=progress.get("step", 0),
                total=progress.get("steps", 1),
                note=text,
            )

        yield note


def accepted(console: Console, job: dict[str, Any]) -> None:
    guard = job.get("guard") or {}
    named = ", ".join(job["classes"])
    if "release" in guard:
        console.print(
            f"{job['job']} accepted: {named} masked on {len(guard['replicas'])} replicas by "
            f"release {guard['release']}, {guard['swap_ms']:.0f} ms after it was durable",
            highlight=False,
        )
    else:
        console.print(f"{job['job']} accepted: {named}", highlight=False)


def ended(console: Console, job: dict[str, Any], report: dict[str, Any] | None) -> None:
    if job["state"] != "done":
        return
    console.print(
        f"{job['job']} done: release {job['release']} has forgotten {', '.join(job['classes'])}",
        highlight=False,
    )
    if report:
        acc_o = report.get("acc_o_weights")
        earlier = f", Acc_o {acc_o['value']:.1%}" if acc_o else ""
        console.print(
            f"held-out, by the weights alone: Acc_f {report['acc_f_weights']['value']:.1%}"
            f"{earlier}; as served, before the mask: Acc_f {report['acc_f_after']['value']:.1%}, "
            f"Acc_r {report['acc_r_after']['value']:.1%} "
            f"(was {report['acc_r_previous']['value']:.1%})",
            highlight=False,
        )


def status(console: Console, answer: dict[str, Any]) -> None:
    acknowledged = "acknowledged" if answer["acknowledged"] else "not acknowledged yet"
    console.print(
        f"release {answer['release']}, {acknowledged}; engine {answer['engine']}", highlight=False
    )
    if answer["suspended"]:
        console.print("suspended: nothing is answered until `lethe resume`", highlight=False)
    if answer["canary"]:
        trial = answer["canary"]
        console.print(
            f"release {trial['release']} is tried on {trial['percent']} % of the requests",
            highlight=False,
        )
    console.print(
        f"forgotten by the weights: {_names(answer['forgotten_by_weights'])}\n"
        f"by a feature edit only:   {_names(answer['edited_only'])}\n"
        f"masked only:              {_names(answer['masked_only'])}",
        highlight=False,
    )
    replicas = _table("replica", "release", "")
    for name, member in answer["replicas"].items():
        words = member.get("problem") or ("behind" if member["behind"] else "")
        replicas.add_row(name, str(member["release"]), words)
    console.print(replicas)
    jobs = _table("job", "classes", "state", "release", "")
    for job in answer["jobs"]:
        jobs.add_row(
            job["job"],
            ", ".join(job["classes"]),
            job["state"],
            "" if job["release"] is None else str(job["release"]),
            job["refused"] or "",
        )
    if answer["jobs"]:
        console.print(jobs)


def releases(console: Console, rows: list[dict[str, Any]]) -> None:
    table = _table("", "release", "kind", "forgotten", "masked", "since", "confirmed")
    for row in rows:
        kind = row["kind"]
        if row["rolled_back_to"] is not None:
            kind += f" to {row['rolled_back_to']}"
        table.add_row(
            "●" if row["active"] else "",
            str(row["release"]),
            kind,
            _names(row["forgotten"]),
            _names(row["masked"]),
            _short(row["activated_at"]),
            _short(row["confirmed_at"]),
        )
    console.print(table)


def rolled_back(console: Console, ack: dict[str, Any]) -> None:
    console.print(
        f"release {ack['release']} serves what release {ack['rolled_back_to']} had, on "
        f"{len(ack['replicas'])} replicas, {ack['swap_ms']:.0f} ms after it was durable; "
        f"still masked: {_names(ack['still_masked'])}",
        highlight=False,
    )


def restored(console: Console, ack: dict[str, Any]) -> None:
    console.print(
        f"release {ack['release']} recognises {ack['class']} again, on {len(ack['replicas'])} "
        f"replicas, {ack['swap_ms']:.0f} ms after it was durable; "
        f"still masked: {_names(ack['still_masked'])}",
        highlight=False,
    )
    if ack["trained_again"]:
        console.print(
            f"the weights know {_names(ack['trained_again'])} again too; these classes stay masked "
            "and are trained again now",
            highlight=False,
        )


def cancelled(console: Console, job: dict[str, Any]) -> None:
    names = ", ".join(job["classes"])
    console.print(
        f"{job['job']} is cancelled: nothing more is trained for it. {names} stays masked and "
        "under erasure, and the weights still know it; `lethe restore` ends the erasure",
        highlight=False,
    )


def retried(console: Console, job: dict[str, Any]) -> None:
    names = ", ".join(job["classes"])
    before = f"{job['ahead']} jobs are before it" if job["ahead"] else "it is next"
    console.print(
        f"{job['job']} is trained again (retry {job['retries']}), {before}; {names} stays masked",
        highlight=False,
    )


def suspended(console: Console, answer: dict[str, Any]) -> None:
    console.print(
        f"nothing is answered any more: {len(answer['replicas'])} replicas stopped within "
        f"{answer['ms']:.0f} ms; `lethe resume` ends it",
        highlight=False,
    )


def resumed(console: Console, answer: dict[str, Any]) -> None:
    console.print(f"{len(answer['replicas'])} replicas answer again", highlight=False)


def predictions(console: Console, answers: list[dict[str, Any]]) -> None:
    table = _table("image", "labels", "release")
    for answer in answers:
        labels = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in answer["predictions"])
        table.add_row(answer["image"], labels, str(answer["release"]))
    console.print(table)


def settings(console: Console, rows: list[tuple[str, Any, str, str]]) -> None:
    """Print (name, value, source, meaning) of each setting."""
    table = _table("setting", "value", "from", "what it is")
    for name, value, source, meaning in rows:
        table.add_row(name, "" if value is None else str(value), source, meaning)
    console.print(table)


def pretrained(console: Console, result: dict[str, Any]) -> None:
    console.print(
        f"{result['out']}: {result['classes']} classes, held-out accuracy "
        f"{result['test_accuracy']:.1%} on {result['test_images']} images, "
        f"{result['seconds']:.0f} s, {result['fingerprint']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"input: {result['input']}", highlight=False, soft_wrap=True)
    if result["warning"]:
        console.print(f"warning: {result['warning']}", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return (f"{shown}, … {len(names)}" if len(names) > 8 else shown) or "none"


def _short(time: str | None) -> str:
    return time[:19].replace("T", " ") if time else ""
