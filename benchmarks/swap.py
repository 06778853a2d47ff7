"""Measures what a swap costs under load: `python benchmarks/swap.py [swaps] [guards]`.

Starts `serving` with two replicas on the digits default and sends steady traffic from another
process. First it measures guards: it forgets a class, cancels the job so that nothing trains, and
restores the class, many times. Then it measures swaps back and forth between two resident releases.

For both it prints the time from the durable activation to the acknowledgement, and how many
requests failed or were answered by a release older than the acknowledged one. For swaps it also
prints the p99 latency of requests near a swap, as a ratio to requests far from one, and the same
ratio for moments at which nothing happened, as a control. It prints the machine's load too, since
other work on the machine changes latencies. There is no pass or fail.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.app import prepare, running
from serving.client import Client
from serving.config.home import Home, token
from serving.config.settings import Settings
from serving.config.sources import load_settings
from serving.loadgen.sender import Answer
from serving.loadgen.traffic import Traffic, stale

RATE = 40.0
NEAR_S = 0.25
PAUSE_S = 1.0
GUARDED = ("0", "1", "2", "4", "5", "6")
"""Classes that are masked and restored in turn."""
QUICK = {"select_steps": 30, "refit_steps": 30}
"""A short training and gates that always pass: any adapter that changes weights will do."""
LENIENT = {"acc_f": 1.0, "worst_class": 1.0, "probe": 1.0, "prototypes": 1.0, "dump_share": 1.0}
LENIENT |= {"acc_r_drop": 1.0, "acc_r_total_drop": 1.0, "near_drop": 1.0, "ece_rise": 1.0}


@dataclass
class Swaps:
    """The measurements of one kind of swap."""

    acks: list[tuple[float, int]] = field(default_factory=list)
    swap_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)

    def note(self, started: float, release: int, ms: float) -> None:
        ended = time.monotonic()
        self.acks.append((ended, release))
        self.swap_ms.append(ms)
        self.whole_ms.append((ended - started) * 1000)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main(swaps: int, guards: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as registry:
        settings = load_settings(
            registry=Path(registry) / "registry",
            port=8765,
            forget={"train": QUICK, "gates": LENIENT},
        )
        prepare(settings)
        with running(settings):
            measure(settings, swaps=swaps, guards=guards)


def measure(settings: Settings, *, swaps: int, guards: int) -> None:
    home = Home(settings.home_path, settings.registry_location)
    masked, back = Swaps(), Swaps()
    with (
        Client(settings.operator_url, token(home, "operator")) as client,
        Traffic(settings.url, token(home, "auditor"), images="digits", rate=RATE) as traffic,
    ):
        traffic.wait_for(int(RATE * 3))
        done = client.wait(client.forget(["3"], reason="benchmark")["job"])
        for turn in range(guards):
            name = GUARDED[turn % len(GUARDED)]
            started = time.monotonic()
            job = client.forget([name], reason="benchmark")
            masked.note(started, job["guard"]["release"], job["guard"]["swap_ms"])
            time.sleep(PAUSE_S / 2)
            client.cancel(job["job"], reason="benchmark")
            client.restore(name, reason="benchmark")
            time.sleep(PAUSE_S / 2)
        bare, adapted = 0, done["release"]
        began = time.monotonic()
        for turn in range(swaps):
            started = time.monotonic()
            ack = client.rollback((bare, adapted)[turn % 2])
            back.note(started, ack["release"], ack["swap_ms"])
            time.sleep(PAUSE_S)
        load = os.getloadavg()[0]
    answers = traffic.answers
    show("guards", masked, answers, since=0.0)
    show("swaps between resident releases", back, answers, since=began)
    compare(back, answers, since=began)
    print(f"load average {load:.1f} on {os.cpu_count()} cores")


def show(title: str, swaps: Swaps, answers: list[Answer], *, since: float) -> None:
    if not swaps.acks:
        return
    window = [a for a in answers if max(since, swaps.acks[0][0] - 1) < a.sent < swaps.acks[-1][0]]
    print(
        f"{len(swaps.acks)} {title}: {len(window)} requests, {sum(not a.ok for a in window)} "
        f"failed, {len(stale(answers, swaps.acks))} stale after an acknowledgement\n"
        f"  durable to acknowledged, ms: p50 {percentile(swaps.swap_ms, 0.5):.1f}, "
        f"p99 {percentile(swaps.swap_ms, 0.99):.1f}; command to answer, ms: "
        f"p50 {percentile(swaps.whole_ms, 0.5):.1f}, p99 {percentile(swaps.whole_ms, 0.99):.1f}"
    )


def compare(swaps: Swaps, answers: list[Answer], *, since: float) -> None:
    moments = [at for at, _ in swaps.acks]
    window = [a for a in answers if since < a.sent < max(moments, default=since)]
    near = latencies(window, moments)
    far = latencies(window, moments, near=False)
    # Nothing happens halfway between two swaps, so this ratio shows the effect of chance.
    calm = latencies(window, [at + PAUSE_S / 2 for at in moments])
    if near and far and calm:
        p99 = percentile(far, 0.99)
        print(
            f"  latency p99 near a swap / far from one: {percentile(near, 0.99) / p99:.2f} "
            f"({percentile(near, 0.99):.1f} / {p99:.1f} ms); halfway between two / far: "
            f"{percentile(calm, 0.99) / p99:.2f}"
        )


def latencies(answers: list[Answer], moments: list[float], *, near: bool = True) -> list[float]:
    """Milliseconds of the requests sent near one of `moments`, or of the others."""
    return [
        (a.got - a.sent) * 1000
        for a in answers
        if a.ok and any(abs(a.sent - at) < NEAR_S for at in moments) == near
    ]


if __name__ == "__main__":
    main(*(int(n) for n in (sys.argv[1:] + ["40", "24"][len(sys.argv) - 1 :])[:2]))
