"""What a swap costs, under load: `python benchmarks/swap.py [swaps]`.

Starts `serving` with two replicas on the digits default, sends steady traffic from another process
and rolls back and forth between resident releases. Prints the time from the durable activation to
the acknowledgement, and the p99 latency of requests near a swap as a ratio to those of the same
run that are far from one. No pass or fail: correctness is tested, speed is measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from serving.app import prepare
from serving.client import Client
from serving.home import Home, token
from serving.settings import load_settings
from serving.start import running
from serving.traffic import Answer, Traffic, stale

RATE = 40.0
NEAR_S = 0.25
PAUSE_S = 1.0


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main(swaps: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as registry:
        settings = load_settings(registry=Path(registry) / "registry", port=8765)
        prepare(settings)
        home = Home(settings.home_path, settings.registry_location)
        with (
            running(settings),
            Client(settings.operator_url, token(home, "operator")) as client,
            Traffic(settings.url, token(home, "auditor"), images="digits", rate=RATE) as traffic,
        ):
            traffic.wait_for(int(RATE * 3))
            began = time.monotonic()
            guard = client.forget(["3"], reason="benchmark")
            guarded = time.monotonic() - began
            done = client.wait(guard["job"])
            acks, swap_ms, whole_ms, moments = [], [], [], []
            for turn in range(swaps):
                started = time.monotonic()
                ack = client.rollback((guard["guard"]["release"], done["release"])[turn % 2])
                ended = time.monotonic()
                acks.append((ended, ack["release"]))
                swap_ms.append(ack["swap_ms"])
                whole_ms.append((ended - started) * 1000)
                moments.append(ended)
                time.sleep(PAUSE_S)
        answers = traffic.answers
    show(answers, acks, swap_ms, whole_ms, moments, guard["guard"]["swap_ms"], guarded * 1000)


def show(
    answers: list[Answer],
    acks: list[tuple[float, int]],
    swap_ms: list[float],
    whole_ms: list[float],
    moments: list[float],
    guard_ms: float,
    command_ms: float,
) -> None:
    near = [a for a in answers if any(abs(a.sent - at) < NEAR_S for at in moments)]
    far = [a for a in answers if a not in near and a.sent > moments[0]]
    near_ms, far_ms = ([(a.got - a.sent) * 1000 for a in part] for part in (near, far))
    ratio = percentile(near_ms, 0.99) / percentile(far_ms, 0.99)
    print(
        f"{len(acks)} swaps, {len(answers)} requests, {sum(not a.ok for a in answers)} failed, "
        f"{len(stale(answers, acks))} stale after an acknowledgement\n"
        f"durable to acknowledged, ms: p50 {percentile(swap_ms, 0.5):.1f}, "
        f"p99 {percentile(swap_ms, 0.99):.1f}; guard {guard_ms:.1f}\n"
        f"command to answer over HTTP, ms: p50 {percentile(whole_ms, 0.5):.1f}, "
        f"p99 {percentile(whole_ms, 0.99):.1f}; forget command (masked) {command_ms:.1f}\n"
        f"latency p99 near a swap / far from one: {ratio:.2f} "
        f"({percentile(near_ms, 0.99):.1f} / {percentile(far_ms, 0.99):.1f} ms)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
