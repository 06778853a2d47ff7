"""Prints what the commands on the registry found, for a person at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from registry.audit.summary import short, summary
from registry.log.figures import figure_text
from registry.records.record import Entry
from registry.schema import encode_time
from registry.upkeep.collection import Collection
from registry.upkeep.verification import Verification


@contextlib.contextmanager
def examining(console: Console, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for a verification."""
    columns = (TextColumn("verifying"), BarColumn(), TextColumn("{task.completed:.0f} blobs"))
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("blobs", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def log(console: Console, entries: Sequence[Entry]) -> None:
    for entry in entries:
        record = entry.record
        why = f"  [{record.reason}]" if record.reason else ""
        _line(
            console,
            f"{record.seq:>6}  {encode_time(record.at)}  {record.type:<11}  {record.actor}  "
            f"{summary(record.body)}{why}",
        )


def compaction(console: Console, view: dict[str, Any]) -> None:
    release = f"release {view['release']}" if view["release"] is not None else "not served yet"
    _line(console, f"{release}: adapter {view['adapter']}")
    _line(
        console,
        f"  stands for {len(view['folds'])} adapters and {len(view['subjects'])} subjects, rank "
        f"{view['rank']}, {view['bytes_after']} bytes instead of {view['bytes_before']}",
    )
    _line(console, f"  its logits differ by {view['difference']:.1e} from the stack's")


def release(console: Console, view: dict[str, Any]) -> None:
    kind = view["kind"] + (
        f" to {view['rolled_back_to']}" if view["rolled_back_to"] is not None else ""
    )
    active = ", active" if view["active"] else ""
    _line(console, f"release {view['release']}: {kind}{active}, backbone {view['backbone']}")
    for name in ("defined", "activated", "confirmed"):
        if act := view[name]:
            why = f"  [{act['reason']}]" if act["reason"] else ""
            _line(console, f"  {name:<9}  {act['at']}  {act['actor']}, record {act['seq']}{why}")
    if view["swap_ms"] is not None:
        _line(console, f"  every replica confirmed after {view['swap_ms']:.0f} ms")
    _line(console, f"masked: {_names(view['guard'])}")
    for adapter in view["adapters"]:
        _line(console, f"adapter {adapter['adapter']}")
        origin = adapter["job"] or f"stands for {len(adapter['folds'])} adapters"
        _line(console, f"  {origin}, erases {_names(adapter['subjects'])}")
        for name, file in adapter["files"].items():
            _line(console, f"  {file['size']:>10} bytes  {short(file['digest'])}  {name}")
        for name, value in adapter["figures"].items():
            _line(console, f"  {name}: {figure_text(value)}")


def difference(console: Console, view: dict[str, Any]) -> None:
    lines = [
        *(f"+ adapter {adapter}" for adapter in view["adapters_added"]),
        *(f"- adapter {adapter}" for adapter in view["adapters_removed"]),
        *(f"+ masked {_names([subject])}" for subject in view["guard_added"]),
        *(f"- masked {_names([subject])}" for subject in view["guard_removed"]),
    ]
    for line in lines or [f"releases {view['before']} and {view['after']} have the same content"]:
        _line(console, line)


def verification(console: Console, found: Verification) -> None:
    verdict = f"{len(found.problems)} problems" if found.problems else "sound"
    _line(
        console,
        f"{verdict}: {found.seq} good records, {found.blobs} blobs of {found.blob_bytes} bytes, "
        f"head {found.head}",
    )
    for problem in found.problems:
        _line(console, str(problem))


def litter(console: Console, found: Verification, leftovers: Sequence[str]) -> None:
    kinds = {"orphan": found.orphans, "stray": found.strays, "leftover": leftovers}
    for kind, names in kinds.items():
        for name in names:
            _line(console, f"{kind:<8}  {name}")
    if found.orphans or leftovers:
        _line(
            console, "orphans and leftovers do no harm; `lethe gc` deletes them when they are old"
        )


def collection(console: Console, found: Collection, *, dry_run: bool) -> None:
    for name in (*found.blobs, *found.uploads, *found.leftovers):
        _line(console, name)
    verb = "would go" if dry_run else "deleted"
    _line(
        console,
        f"{len(found.blobs)} blobs, {len(found.uploads)} images without a request, "
        f"{len(found.leftovers)} temporary files {verb}",
    )


def text(console: Console, page: str) -> None:
    _line(console, page.rstrip("\n"))


def position(console: Console, where: str, *, seq: int, head: str) -> None:
    _line(console, f"{where}: {seq} records, head {head}")


def keys(console: Console, rows: Iterable[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "roles", "retired from", "private key"):
        table.add_column(column)
    for row in rows:
        private = escape(row["private_key"] or "not here")
        table.add_row(row["key"], ", ".join(row["roles"]), row["not_after"] or "", private)
    console.print(table)


def rotation(console: Console, view: dict[str, Any]) -> None:
    _line(
        console,
        f"{view['role']}: {view['new']} signs from now on, {view['old']} is retired from "
        f"{view['not_after']} on\nBefore then, restart `lethe serve` if it runs, and renew copies "
        "of the trust file elsewhere.",
    )


def _names(subjects: Sequence[dict[str, Any]]) -> str:
    return ", ".join(s["class"] or short(s["subject"]) for s in subjects) or "none"


def _line(console: Console, text: str) -> None:
    # No wrapping, since people grep the output. No markup, since records hold anybody's text.
    console.print(text, highlight=False, soft_wrap=True, markup=False)
