"""Measures what the shadow costs a response: `python benchmarks/shadow.py [turns]`.

One replica runs under Ray Serve with its real actors. It sends requests to itself, without HTTP,
whose cost doesn't depend on the shadow. In each turn there is a phase of one second with the shadow
off, one with it off again, and one with it at its default share. Their order is random, so that
other work on the machine affects all alike. A phase ends with traffic that is not sampled, so that
the samples of its first part are scored within it; their share is raised to make up for that.
Steady traffic gives latencies, and `AT_ONCE` requests at once give throughput.

Prints the median of the turns' ratios with a bootstrap interval of 95 %. The ratio of off again to
off shows how far the ratio of equals is from 1. The bar: the shadow delays a response by at most
1 %. It also prints the CPU time of the whole replica for an answer (`cpu`) and of the shadow's
thread for a sample: other work on the machine affects CPU times less.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from forgetting.data.sources import open_image_set
from serving.app import prepare, start_actors
from serving.config.settings import MonitorSettings, Settings
from serving.config.sources import load_settings
from serving.control.client import ControlClient
from serving.control.messages import ForgetRequest, Rejection
from serving.coordination.messages import Author
from serving.loadgen.traffic import held_out
from serving.monitoring.client import MonitorClient
from serving.monitoring.posture import Stance
from serving.replica.admission import Call
from serving.replica.recognizer import Recognizer
from serving.replica.slot import Ticket

ARMS = ("off", "off again", "shadow")
SAMPLED_S = 0.7
PHASE_S = 1.0
RATE = 60.0
ANSWER_S = 60.0
AT_ONCE = 16
OFF = Stance(Settings.model_construct(monitor=MonitorSettings(posture="off")))
RECIPE = {"select_steps": 10, "refit_steps": 20}
"""A short training: there must be an adapter, but how well it forgets doesn't matter here."""
LAX = {
    name: 1.0
    for name in (
        "acc_f",
        "acc_o",
        "worst_class",
        "acc_r_drop",
        "acc_r_total_drop",
        "near_drop",
        "dump_share",
        "probe",
        "prototypes",
        "ece_rise",
    )
}


class Measuring(Recognizer):
    """A replica that sends itself requests, so that the arms differ only in the shadow."""

    async def measure(self, turns: int) -> list[str]:
        return await measure(self, turns)


def start(settings: Settings) -> DeploymentHandle:
    """One replica, with one class forgotten."""
    backbone = prepare(settings)
    actors = start_actors(settings, backbone)
    deployment = serve.deployment(Measuring, max_ongoing_requests=128)
    replica = deployment.bind(settings, actors.coordinator, MonitorClient(actors.monitor))
    handle = serve.run(replica, name="shadow")
    job = asyncio.run(forgotten(ControlClient(actors.control), "3"))
    print(f"{job['job']} is {job['state']}, release {job['release']}", job["refused"] or "")
    return handle


async def forgotten(control: ControlClient, name: str) -> dict[str, Any]:
    """Forget the class `name`; return the view of the job when it has ended."""
    author = Author("benchmark", "", "benchmark")
    job = await control.forget(ForgetRequest((name,)), author)
    while isinstance(job, dict) and job["state"] not in ("done", "refused"):
        await asyncio.sleep(0.5)
        job = await control.job(job["job"])
    if isinstance(job, Rejection):
        raise SystemExit(f"the class was not forgotten: {job.detail}")
    return job


async def one(replica: Recognizer, png: bytes) -> float:
    started = time.perf_counter()
    ticket = Ticket(replica.slot)
    try:
        deadline = asyncio.get_running_loop().time() + ANSWER_S
        await replica.predict(png, Call(uuid.uuid4().hex, ticket, deadline), top_k=5)
    finally:
        ticket.close()
    return time.perf_counter() - started


async def steady(
    replica: Recognizer, stance: Stance, pictures: Sequence[bytes], rng: random.Random
) -> list[float]:
    """Latencies in seconds of one phase of open-loop traffic."""
    tasks = []
    due = began = time.perf_counter()
    while due < began + PHASE_S:
        replica.stance = stance if due < began + SAMPLED_S else OFF
        tasks.append(asyncio.create_task(one(replica, rng.choice(pictures))))
        due += rng.expovariate(RATE)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
    return list(await asyncio.gather(*tasks))


async def flood(
    replica: Recognizer, stance: Stance, pictures: Sequence[bytes], rng: random.Random
) -> float:
    """Answers a second in one phase with `AT_ONCE` requests at once."""
    began = time.perf_counter()
    done = 0

    async def keep_asking() -> None:
        nonlocal done
        while (now := time.perf_counter()) < began + PHASE_S:
            replica.stance = stance if now < began + SAMPLED_S else OFF
            await one(replica, rng.choice(pictures))
            done += 1

    await asyncio.gather(*(keep_asking() for _ in range(AT_ONCE)))
    return done / (time.perf_counter() - began)


def cpu_of(thread: str) -> float:
    """CPU seconds that this process's threads whose names start with `thread` have used so far."""
    ids = [t.native_id for t in threading.enumerate() if t.name.startswith(thread)]
    used = [Path(f"/proc/self/task/{i}/schedstat").read_text().split()[0] for i in ids]
    return sum(map(int, used)) / 1e9


def ratio(over: Sequence[float], under: Sequence[float], rng: np.random.Generator) -> str:
    """The median of the turns' ratios with its bootstrap interval."""
    ratios = np.asarray(over) / np.asarray(under)
    draws = np.median(rng.choice(ratios, (4000, len(ratios))), 1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f})"


async def measure(replica: Recognizer, turns: int) -> list[str]:
    rng = random.Random(0)
    pictures = [png for _, png in held_out(open_image_set("digits"))]
    chosen = replica.settings.monitor
    share = chosen.model_copy(update={"share": chosen.share * PHASE_S / SAMPLED_S})
    on = Stance(replica.settings.model_copy(update={"monitor": share}))
    of_arm = {arm: on if arm == "shadow" else OFF for arm in ARMS}
    found: dict[str, dict[str, list[float]]] = {
        name: {arm: [] for arm in ARMS} for name in ("p50", "mean", "p99", "cpu", "rate")
    }
    everything: dict[str, list[float]] = {arm: [] for arm in ARMS}
    await steady(replica, OFF, pictures, rng)
    before = cpu_of("shadow")
    for turn in range(turns):
        for arm in rng.sample(ARMS, len(ARMS)):
            used = time.process_time()
            latencies = await steady(replica, of_arm[arm], pictures, rng)
            found["cpu"][arm].append((time.process_time() - used) / len(latencies))
            everything[arm] += latencies
            found["p50"][arm].append(float(np.quantile(latencies, 0.5)))
            found["mean"][arm].append(float(np.mean(latencies)))
            found["p99"][arm].append(float(np.quantile(latencies, 0.99)))
        for arm in rng.sample(ARMS, len(ARMS)) if turn % 3 == 0 else ():
            found["rate"][arm].append(await flood(replica, of_arm[arm], pictures, rng))
    spent = cpu_of("shadow") - before
    draw = np.random.default_rng(0)
    said = []
    for name, arms in found.items():
        said.append(
            f"{name}: shadow / off {ratio(arms['shadow'], arms['off'], draw)}, "
            f"off again / off {ratio(arms['off again'], arms['off'], draw)}"
        )
    for arm, latencies in everything.items():
        p50, p99 = (1000 * np.quantile(latencies, q) for q in (0.5, 0.99))
        said.append(
            f"{arm}: {len(latencies)} requests, mean {1000 * np.mean(latencies):.2f}, "
            f"p50 {p50:.2f}, p99 {p99:.2f} ms, {1000 * np.median(found['cpu'][arm]):.2f} ms of CPU "
            f"each; {np.median(found['rate'][arm]):.0f} answers/s"
        )
    shown = {
        name: sum(s.value for f in replica.metrics.families() for s in f.samples if s.name == name)
        for name in ("lethe_shadow_samples_total", "lethe_shadow_drops_total")
    }
    scored = shown["lethe_shadow_samples_total"]
    said.append(f"{shown}; {1000 * spent / max(scored, 1):.2f} ms of CPU a sample")
    return said


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as registry:
        settings = load_settings(
            registry=Path(registry) / "registry",
            engine={"name": "onnxruntime"},
            forget={"train": RECIPE, "gates": LAX},
        )
        ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            namespace="lethe",
        )
        try:
            print(*start(settings).measure.remote(turns).result(), sep="\n")
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
