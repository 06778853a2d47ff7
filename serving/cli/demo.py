"""`lethe demo`: runs the whole system on real images over HTTP and measures every figure.

It forgets one class, then a second, then rolls back one release, while another process keeps
sending held-out images. Accuracies are measured through the endpoint with the auditor's token: they
are those of the weights, before the mask.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from forgetting.data.sources import open_image_set
from forgetting.measure.accuracy import h_mean
from serving.app import prepare, running
from serving.cli import show
from serving.client import Client
from serving.cluster.local import interrupted
from serving.config.home import home_of, token
from serving.config.settings import Settings
from serving.errors import ServingError
from serving.loadgen.sender import Answer
from serving.loadgen.traffic import Traffic, audit, held_out, stale

RATE = 40.0
WINDOW_S = 4.0
LINGER_S = 2.0


class DemoError(ServingError):
    """The demo failed; the message says why."""


@dataclass(frozen=True)
class Forgotten:
    """One forget command of the demo and its outcome."""

    name: str
    job: dict[str, Any]
    report: dict[str, Any]
    acknowledged: tuple[tuple[float, int], ...]
    """(CLOCK_MONOTONIC seconds, release) of each acknowledgement."""
    seconds: float
    """Seconds from the command to the acknowledgement of the trained release."""


def run_demo(settings: Settings, console: Console, *, keep: bool) -> dict[str, Any]:
    """Run the demo and return its summary. Raises `DemoError` when a forget is refused."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lethe-demo-"))
        chosen = settings.model_copy(
            update={"registry": Path(scratch) / "registry", **_free_ports(settings)}
        )
        with show.pretraining(console) as note:
            prepare(chosen, note)
        with show.working(console, f"starting Ray and {chosen.replicas} replicas"):
            stack.enter_context(running(chosen))
        home = home_of(chosen)
        client = stack.enter_context(Client(chosen.operator_url, token(home, "operator")))
        auditor = token(home, "auditor")
        traffic = stack.enter_context(Traffic(chosen.url, auditor, images=chosen.images, rate=RATE))
        demo = _Demo(chosen, console, client, auditor, traffic)
        summary = demo.run()
        if keep:
            console.print(
                f"still serving on {chosen.url}, console {chosen.operator_url}/console; "
                "Ctrl-C ends it",
                highlight=False,
            )
            interrupted().wait()
    return summary


class _Demo:
    def __init__(
        self,
        settings: Settings,
        console: Console,
        client: Client,
        auditor: str,
        traffic: Traffic,
    ) -> None:
        self._settings = settings
        self._console = console
        self._client = client
        self._auditor = auditor
        self._traffic = traffic
        images = open_image_set(settings.images)
        self._pictures = held_out(images)
        # Two classes that are easy to tell apart: one from the middle of the list, and the last.
        self._first, self._second = images.classes[len(images.classes) // 2], images.classes[-1]
        self._view: dict[str, Any] = {}
        self._said = "the bare backbone serves"

    def run(self) -> dict[str, Any]:
        with self._live():
            self._traffic.wait_for(int(RATE * LINGER_S))
            before = self._audit()
            first = self._forget(self._first)
            second = self._forget(self._second)
            after = self._audit()
            rolled = self._roll_back(second)
        answers = self._traffic.answers
        acks = (*first.acknowledged, *second.acknowledged, rolled)
        summary = self._summary(before, after, (first, second), answers, acks)
        self._print(summary, rolled[1])
        return summary

    def _forget(self, name: str) -> Forgotten:
        self._said = f"forgetting {name!r}"
        started = time.monotonic()
        job = self._client.forget([name], reason="demo")
        masked = (time.monotonic(), int(job["guard"]["release"]))
        ended = self._client.wait(job["job"], self._note)
        trained = (time.monotonic(), int(ended["release"] or 0))
        self._view = {}
        if ended["state"] != "done":
            raise DemoError(f"forgetting {name!r} was refused: {ended['refused']}")
        self._said = f"release {ended['release']} has forgotten {name!r}"
        self._traffic.wait_for(int(RATE * LINGER_S))
        return Forgotten(
            name,
            {**ended, "guard": job["guard"]},
            self._client.report(ended["job"]),
            (masked, trained),
            trained[0] - started,
        )

    def _roll_back(self, last: Forgotten) -> tuple[float, int]:
        """Roll back to the release before the last adapter, whose class must stay masked.

        Returns (CLOCK_MONOTONIC seconds, release) of the acknowledgement. Raises `DemoError` if the
        class was named after that.
        """
        to = int(last.job["guard"]["release"])
        ack = self._client.rollback(to, reason="demo")
        at = (time.monotonic(), int(ack["release"]))
        self._said = f"rolled back to {to}: release {ack['release']}, {last.name!r} stays masked"
        self._traffic.wait_for(int(RATE * WINDOW_S))
        named = [a for a in self._traffic.answers if a.sent > at[0] and a.named == last.name]
        if named:
            raise DemoError(f"{last.name!r} was named {len(named)} times after the rollback")
        return at

    def _audit(self) -> list[Answer]:
        self._said = f"asking about all {len(self._pictures)} held-out images"
        return audit(self._settings.url, self._auditor, self._pictures)

    def _note(self, view: dict[str, Any]) -> None:
        self._view = view

    # -- what is shown

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        ended = threading.Event()
        with Live(console=self._console, transient=True, auto_refresh=False) as live:

            def redraw() -> None:
                while not ended.wait(0.25):
                    live.update(self._frame(), refresh=True)

            thread = threading.Thread(target=redraw, daemon=True)
            if self._console.is_terminal:
                thread.start()
            try:
                yield
            finally:
                ended.set()

    def _frame(self) -> Group:
        answers = self._traffic.answers
        recent = [a for a in answers if a.got > time.monotonic() - WINDOW_S and a.ok]
        table = Table(title="live traffic", box=None, title_justify="left", pad_edge=False)
        for column in ("images of", "answered rightly", "named by the weights"):
            table.add_column(column)
        rows: list[tuple[str, Callable[[Answer], bool]]] = [
            (f"class {self._first}", lambda a: a.label == self._first),
            (f"class {self._second}", lambda a: a.label == self._second),
            ("all others", lambda a: a.label not in (self._first, self._second)),
        ]
        for name, belongs in rows:
            own = [a for a in recent if belongs(a)]
            table.add_row(name, _share(own, lambda a: a.named), _share(own, lambda a: a.weights))
        stamps = sorted({a.release for a in recent[-8:]})
        failed = sum(not a.ok for a in answers)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"release {', '.join(map(str, stamps)) or '…'}", style="bold"),
            f"{len(answers)} requests",
            f"{failed} failed",
            self._said,
        )
        progress = self._view.get("progress") or {}
        bar = Progress(TextColumn("{task.description:<12}"), BarColumn(), console=self._console)
        if progress:
            bar.add_task(
                str(progress.get("phase", "")),
                completed=progress.get("step", 0),
                total=progress.get("steps", 1),
            )
        return Group(head, table, bar)

    def _summary(
        self,
        before: list[Answer],
        after: list[Answer],
        forgotten: tuple[Forgotten, Forgotten],
        answers: list[Answer],
        acks: Sequence[tuple[float, int]],
    ) -> dict[str, Any]:
        names = {entry.name for entry in forgotten}
        last = forgotten[-1].name
        acc_f_before = _accuracy(before, lambda a: a.label == last)
        acc_f_after = _accuracy(after, lambda a: a.label == last)
        acc_r_after = _accuracy(after, lambda a: a.label not in names)
        everything = [*before, *after, *answers]
        reports = [entry.report for entry in forgotten]
        swaps = [self._swap_ms(release) for _, release in acks]
        return {
            "acc_r_before": _accuracy(before, lambda a: a.label not in names),
            "acc_r_after": acc_r_after,
            "acc_f_before": acc_f_before,
            "acc_f_weights": reports[-1]["acc_f_weights"]["value"],
            "acc_f_after": acc_f_after,
            "acc_o_weights": reports[-1]["acc_o_weights"]["value"],
            "acc_o": _accuracy(after, lambda a: a.label in names and a.label != last),
            "h": round(h_mean(acc_r_after, acc_f_before - acc_f_after), 4),
            "groups_kept": max(int(r["groups_kept"]) for r in reports),
            "groups_total": int(reports[-1]["groups_total"]),
            "adapter_bytes": max(int(r["adapter_bytes"]) for r in reports),
            "train_s": round(max(float(r["seconds"]) for r in reports), 2),
            "forget_to_ack_s": round(max(entry.seconds for entry in forgotten), 2),
            "swap_ms": round(max(swaps), 2),
            "requests": len(everything),
            "failed": sum(not a.ok for a in everything),
            "stale_after_ack": len(stale(everything, acks)),
            "releases": len(self._client.releases()) - 1,
        }

    def _swap_ms(self, release: int) -> float:
        row = next(r for r in self._client.releases() if r["release"] == release)
        return float(row["swap_ms"])

    def _print(self, summary: dict[str, Any], rolled: int) -> None:
        title = "measured on held-out images, over HTTP, before the mask"
        self._console.print(title, style="bold", highlight=False)
        table = Table(box=None, pad_edge=False)
        for column in ("", "before", "after"):
            table.add_column(column)
        for key, name in (
            ("r", "retained classes (Acc_r)"),
            ("f", f"class {self._second} (Acc_f)"),
        ):
            before, after = summary[f"acc_{key}_before"], summary[f"acc_{key}_after"]
            table.add_row(name, f"{before:.1%}", f"{after:.1%}")
        table.add_row(
            f"class {self._first}, forgotten earlier (Acc_o)", "", f"{summary['acc_o']:.1%}"
        )
        self._console.print(table)
        self._console.print(
            "by the weights alone, every feature edit taken out (from the report): "
            f"Acc_f {summary['acc_f_weights']:.1%}, Acc_o {summary['acc_o_weights']:.1%}",
            highlight=False,
        )
        self._console.print(
            f"H {summary['h']:.3f}; {summary['groups_kept']} of {summary['groups_total']} groups "
            f"kept, {summary['adapter_bytes'] / 1024:.0f} KiB an adapter, trained in "
            f"{summary['train_s']:.1f} s\n"
            f"{summary['requests']} requests, {summary['failed']} failed, "
            f"{summary['stale_after_ack']} from an older release after an acknowledgement; "
            f"slowest swap {summary['swap_ms']:.0f} ms\n"
            f"release {rolled} is a rollback: class {self._second} is no longer forgotten by the "
            "weights and stays masked",
            highlight=False,
        )


def _accuracy(answers: Sequence[Answer], belongs: Callable[[Answer], bool]) -> float:
    """Share of the chosen images that the weights, before the mask, classify correctly."""
    own = [a for a in answers if a.ok and belongs(a)]
    return round(sum(a.weights == a.label for a in own) / len(own), 4) if own else 0.0


def _share(answers: Sequence[Answer], named: Callable[[Answer], str]) -> str:
    if not answers:
        return "…"
    share = sum(named(a) == a.label for a in answers) / len(answers)
    return f"{share:5.0%}  {'█' * round(share * 20)}"


def _free_ports(settings: Settings) -> dict[str, Any]:
    operator = _free_port(settings.operator.host, settings.operator_port)
    return {
        "port": _free_port(settings.host, settings.port),
        "operator": settings.operator.model_copy(update={"port": operator}),
    }


def _free_port(host: str, wanted: int) -> int:
    """The port `wanted`, or any free one if that is taken. Raises `DemoError` if there is none."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise DemoError(f"no free port on {host}")
