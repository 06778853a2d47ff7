"""`lethe top`: shows the server's metrics page and status in the terminal, updated all the time.

It asks with the operator's token. It computes only rates, from two readings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serving.client import Client, ClientError
from serving.coordination.jobs import ENDED
from serving.monitoring.metrics import FAILED
from serving.monitoring.metrics_page import Look, look
from serving.monitoring.tally import SOURCES
from serving.monitoring.thresholds import PROOF, SUSPICION

BLINDNESS = {
    "off": "the monitor is off",
    "ended": "shadowing has ended, and no canary class is probed",
    "no_probes": "no forgotten canary class is probed",
    "no_matches": "nothing forgotten was seen for a long time",
    "no_numbers": "no replica is heard of",
}
"""The reasons of `lethe_monitor_blind`, in words."""


def screen(now: Look, before: Look | None, status: Mapping[str, Any]) -> Group:
    """The screen for the reading `now`; rates are since the reading `before`."""
    return Group(
        _headline(status),
        _traffic(now, before),
        _watching(now),
        _evidence(now),
        _replicas(now, status),
        *_jobs(status),
    )


def watch(
    client: Client,
    console: Console,
    *,
    every: float,
    looks: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Draw until interrupted, or `looks` times, every `every` seconds.

    Raises `ClientError` when the first reading fails; a later failure is shown on the screen.
    """
    before: Look | None = None
    done = 0
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                now = look(client.metrics(), at=clock())
                live.update(screen(now, before, client.status()), refresh=True)
                before = now
            except ClientError as error:
                if before is None:
                    raise
                live.update(Text(f"no answer: {error}", style="red"), refresh=True)
            done += 1
            if looks is not None and done >= looks:
                return
            time.sleep(every)


def _headline(status: Mapping[str, Any]) -> Text:
    acknowledged = "acknowledged" if status["acknowledged"] else "not acknowledged yet"
    return Text(
        f"release {status['release']}, {acknowledged}; "
        f"{len(status['forgotten_by_weights'])} of {status['classes']} classes forgotten by the "
        f"weights, {len(status['masked_only'])} masked only"
    )


def _traffic(now: Look, before: Look | None) -> Text:
    name = "lethe_requests_total"
    in_flight = now.total("lethe_requests_in_flight")
    if before is None or now.at <= before.at:
        return Text(f"requests: {now.total(name, route='/v1/predict'):,.0f} so far")
    seconds = now.at - before.at

    def rate(name: str, **labels: str) -> float:
        # The counts of a replica that ended leave the page; a rate is never negative.
        return max(now.total(name, **labels) - before.total(name, **labels), 0.0) / seconds

    predicted = rate(name, route="/v1/predict")
    failed = sum(rate(name, route="/v1/predict", outcome=outcome) for outcome in FAILED)
    spent = rate("lethe_request_duration_seconds_sum", route="/v1/predict")
    mean = f", {1000 * spent / predicted:.1f} ms each" if predicted else ""
    return Text(
        f"predictions: {predicted:.1f}/s{mean}, {failed:.1f}/s failed, {in_flight:.0f} in flight; "
        f"shadowed {rate('lethe_shadow_samples_total'):.1f}/s, "
        f"dropped {rate('lethe_shadow_drops_total'):.1f}/s"
    )


def _watching(now: Look) -> Text:
    """The posture, when shadowing ends, and whether a leak could be seen."""
    posture = now.chosen("lethe_monitor_posture", "posture")
    if posture is None:
        return Text("watching: blind, the monitor has no numbers", style="bold red")
    words = f"watching: {posture}"
    until = now.gauge("lethe_shadow_until_timestamp_seconds")
    if until:
        when = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        words += f", shadowing {'ends' if posture == 'shadow' else 'ended'} {when}"
    canaries = now.gauge("lethe_canary_classes")
    if canaries:
        gone = now.gauge("lethe_canary_classes_forgotten") or 0.0
        words += f", {gone:.0f} of {canaries:.0f} canary classes forgotten"
    reason = now.chosen("lethe_monitor_blind", "reason")
    if reason is None:
        return Text(words)
    return Text(f"{words}; blind: {BLINDNESS.get(reason, reason)}", style="bold red")


def _evidence(now: Look) -> Table:
    table = _table("live traffic", "log10", "alert at", "", "")
    target = _share("target", now.gauge("lethe_leak_target_ratio"))
    drift = _share("target", now.gauge("lethe_drift_target_ratio"))
    compared = now.chosen("lethe_monitor_posture", "posture") in (None, "shadow")
    rows = []
    for source in SOURCES:
        if source == "canary" and not now.gauge("lethe_canary_classes"):
            continue
        of = {"source": source}
        seen = compared or source == "canary"
        whose = "leak" if source == "shadow" else "canary leak"
        bound = _share("leak rate at most", now.gauge("lethe_leak_upper_bound_ratio", **of))
        rows += [
            (
                seen,
                f"{whose}, evidence",
                now.gauge("lethe_leak_evidence_log10", **of),
                PROOF,
                bound,
            ),
            (
                seen,
                f"{whose}, detector",
                now.gauge("lethe_leak_detector_log10", **of),
                SUSPICION,
                target,
            ),
        ]
    rows.append(
        (compared, "drift, evidence", now.gauge("lethe_drift_evidence_log10"), PROOF, drift)
    )
    for seen, title, value, limit, note in rows:
        if not seen:
            table.add_row(title, "", "", "not compared", "")
            continue
        if value is None:
            table.add_row(title, "blind", f"{limit:.0f}", "", "")
            continue
        verdict = Text("alert", style="bold red") if value >= limit else Text("quiet")
        table.add_row(title, f"{value:+.2f}", f"{limit:.0f}", verdict, note)
    return table


def _replicas(now: Look, status: Mapping[str, Any]) -> Table:
    table = _table("replica", "release", "lease", "images", "")
    leases = dict(_by_replica(now, "lethe_lease_remaining_seconds"))
    images = dict(_by_replica(now, "lethe_images_total"))
    for name, member in status["replicas"].items():
        lease = f"{leases[name]:.1f} s" if name in leases else "silent"
        behind = Text("behind", style="bold red") if member["behind"] else Text("")
        table.add_row(name, str(member["release"]), lease, f"{images.get(name, 0):,.0f}", behind)
    return table


def _jobs(status: Mapping[str, Any]) -> list[Table]:
    running = [job for job in status["jobs"] if job["state"] not in ENDED]
    if not running:
        return []
    table = _table("job", "state", "progress", "ahead")
    for job in running:
        progress = job.get("progress") or {}
        steps = f"{progress['step']}/{progress['steps']}" if "steps" in progress else ""
        table.add_row(job["job"], progress.get("phase", job["state"]), steps, str(job["ahead"]))
    return [table]


def _by_replica(now: Look, name: str) -> list[tuple[str, float]]:
    return [(labels["replica"], value) for labels, value in now.samples.get(name, ())]


def _share(words: str, value: float | None) -> str:
    return "" if value is None else f"{words} {value:.1%}"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
