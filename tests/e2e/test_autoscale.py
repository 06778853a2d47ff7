"""Replicas start and stop with the traffic while classes are masked."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from serving.client import Client
from serving.loadgen.traffic import Traffic, stale
from tests.e2e.conftest import Server

MOST = 3
SCALED = f"""
replicas = 1
[autoscale]
most = {MOST}
in_flight = 0.7
up_s = 0.5
down_s = 2.0
[lease]
seconds = 5.0
heartbeat = 0.3
"""
PATIENCE_S = 90.0


def guard(client: Client, name: str, acks: list[tuple[float, int]]) -> float:
    """Mask a class without training; return the time of the acknowledgement."""
    job = client.forget([name])
    acks.append((time.monotonic(), job["guard"]["release"]))
    client.cancel(job["job"], reason="the guard is what is tested")
    return acks[-1][0]


def guard_until(
    client: Client,
    reached: Callable[[int], bool],
    classes: list[str],
    acks: list[tuple[float, int]],
    masked: dict[str, float],
) -> None:
    """Mask and restore classes by turns until `reached` accepts the number of replicas."""
    deadline = time.monotonic() + PATIENCE_S
    for turn in range(1000):
        name = classes[turn % len(classes)]
        if name in masked:
            del masked[name]
            release = client.restore(name, reason="again")["release"]
            acks.append((time.monotonic(), release))
        masked[name] = guard(client, name, acks)
        replicas = client.status()["replicas"]
        if reached(len(replicas)):
            return
        assert time.monotonic() < deadline, replicas
        time.sleep(0.3)


@pytest.mark.slow
def test_guards_hold_while_replicas_are_added_and_removed(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(SCALED).start()
    acks: list[tuple[float, int]] = []
    masked: dict[str, float] = {}
    with (
        server.client() as client,
        Traffic(server.url, server.auditor_token, images="digits", rate=5) as little,
    ):
        assert len(client.status()["replicas"]) == 1
        little.wait_for(10)
        with Traffic(server.url, server.auditor_token, images="digits", rate=120) as much:
            much.wait_for(50)
            guard_until(client, lambda n: n == MOST, ["0", "1"], acks, masked)
            much.wait_for(200)
        grown = {a.replica for a in much.answers if a.ok}
        guard_until(client, lambda n: n == 1, ["2", "3"], acks, masked)
        settled = time.monotonic()
        little.wait_for(20)
        (left,) = client.status()["replicas"]
        assert client.status()["acknowledged"]
    answers = [*little.answers, *much.answers]
    assert len(grown) >= 2, grown
    assert {a.replica for a in little.answers if a.sent > settled} == {left}
    assert [a for a in answers if not a.ok] == []
    assert len(acks) >= 4
    assert stale(answers, acks) == []
    assert [a for a in answers if a.sent > masked.get(a.named, time.monotonic())] == []
    assert server.stop() == 0
