"""What the shadow costs a response: `python benchmarks/shadow.py [pairs]`.

One replica under Ray Serve with its real actors; it sends itself the requests, without HTTP in
front, which would be the same with and without. Phases of a second each go in turn with the shadow
off and with it at its default share, in random order, so that whatever else the machine does hits
both alike. Steady traffic gives latencies, as many requests at once as fit gives throughput. Prints
the mean ratio over all phases with a bootstrap interval of 95 %; a third arm, off again, says how
far the ratio of equals is from 1. The bar: a response is delayed by at most 1 %.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from forgetting.data import open_image_set
from serving import control, coordinator, monitor, trainer
from serving.app import _actor, prepare
from serving.control import Control
from serving.coordinator import Coordinator
from serving.home import home_of
from serving.membership import Terms
from serving.monitor import Monitor
from serving.posture import Stance
from serving.replica import Recognizer
from serving.settings import Settings, load_settings
from serving.slot import Ticket
from serving.traffic import held_out
from serving.trainer import Trainer

ARMS = ("off", "off again", "shadow")
PHASE_S = 1.0
SETTLE_S = 0.1
RATE = 60.0
AT_ONCE = 16
RECIPE = {"select_steps": 10, "refit_steps": 20}
"""Short: how well the class is forgotten doesn't matter here, that there is an adapter does."""
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
    """A replica that sends itself requests, so that the two arms differ in nothing else."""

    async def measure(self, pairs: int) -> list[str]:
        return await measure(self, pairs)


def start(settings: Settings) -> DeploymentHandle:
    """One replica, with one class forgotten."""
    backbone = prepare(settings)
    terms = Terms(settings.lease.seconds, settings.lease.margin, settings.lease.heartbeat)
    leading = _actor(Coordinator, coordinator.ACTOR, 1000).remote(
        settings.home_path, settings.registry_location, terms
    )
    watching = _actor(Monitor, monitor.ACTOR, 8).remote(home_of(settings).evidence)
    training = _actor(Trainer, trainer.ACTOR, 2).remote(settings)
    commanding = _actor(Control, control.ACTOR, 32).remote(
        settings,
        coordinator=leading,
        trainer=training,
        backbone=backbone.fingerprint,
        classes=backbone.spec.classes,
    )
    deployment = serve.deployment(Measuring, max_ongoing_requests=128)
    handle = serve.run(deployment.bind(settings, leading, watching, commanding), name="shadow")
    job = ray.get(commanding.forget.remote(["3"], "benchmark", "", "benchmark"))
    while job["state"] not in ("done", "refused"):
        time.sleep(0.5)
        job = ray.get(commanding.job.remote(job["job"]))
    print(f"{job['job']} is {job['state']}, release {job['release']}", job["refused"] or "")
    return handle


async def one(replica: Recognizer, png: bytes) -> float:
    started = time.perf_counter()
    ticket = Ticket(replica.slot)
    try:
        await replica.predict(png, ticket, top_k=5, min_release=None)
    finally:
        ticket.close()
    return time.perf_counter() - started


async def steady(replica: Recognizer, pictures: Sequence[bytes], rng: random.Random) -> list[float]:
    """Latencies of one phase of open-loop traffic, seconds."""
    tasks = []
    due = time.perf_counter()
    end = due + PHASE_S
    while due < end:
        tasks.append(asyncio.create_task(one(replica, rng.choice(pictures))))
        due += rng.expovariate(RATE)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
    return list(await asyncio.gather(*tasks))


async def flood(replica: Recognizer, pictures: Sequence[bytes], rng: random.Random) -> float:
    """Answers per second of one phase with `AT_ONCE` requests at once."""
    began = time.perf_counter()
    done = 0

    async def keep_asking() -> None:
        nonlocal done
        while time.perf_counter() < began + PHASE_S:
            await one(replica, rng.choice(pictures))
            done += 1

    await asyncio.gather(*(keep_asking() for _ in range(AT_ONCE)))
    return done / (time.perf_counter() - began)


def ratio(over: Sequence[float], under: Sequence[float], rng: np.random.Generator) -> str:
    """Mean of the phases' log ratios, turn by turn, with its bootstrap interval."""
    logs = np.log(np.asarray(over) / np.asarray(under))
    draws = rng.choice(logs, (4000, len(logs))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{np.exp(logs.mean()):.4f} ({np.exp(low):.4f} to {np.exp(high):.4f})"


async def measure(replica: Recognizer, pairs: int) -> list[str]:
    settings = replica.settings
    rng = random.Random(0)
    pictures = [png for _, png in held_out(open_image_set("digits"))]
    none = settings.monitor.model_copy(update={"posture": "off"})
    off = Stance(settings.model_copy(update={"monitor": none}))
    of_arm = {arm: Stance(settings) if arm == "shadow" else off for arm in ARMS}
    found: dict[str, dict[str, list[float]]] = {
        name: {arm: [] for arm in ARMS} for name in ("p50", "mean", "p99", "rate")
    }
    everything: dict[str, list[float]] = {arm: [] for arm in ARMS}
    await steady(replica, pictures, rng)
    for _ in range(pairs):
        for arm in rng.sample(ARMS, len(ARMS)):
            replica.stance = of_arm[arm]
            latencies = await steady(replica, pictures, rng)
            everything[arm] += latencies
            found["p50"][arm].append(float(np.quantile(latencies, 0.5)))
            found["mean"][arm].append(float(np.mean(latencies)))
            found["p99"][arm].append(float(np.quantile(latencies, 0.99)))
            await asyncio.sleep(SETTLE_S)
        for arm in rng.sample(ARMS, len(ARMS)):
            replica.stance = of_arm[arm]
            found["rate"][arm].append(await flood(replica, pictures, rng))
            await asyncio.sleep(SETTLE_S)
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
            f"p50 {p50:.2f}, p99 {p99:.2f} ms; {np.median(found['rate'][arm]):.0f} answers/s"
        )
    shown = {
        name: sum(s.value for f in replica.metrics.families() for s in f.samples if s.name == name)
        for name in ("lethe_shadow_samples_total", "lethe_shadow_drops_total")
    }
    said.append(str(shown))
    return said


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as registry:
        settings = load_settings(
            registry=Path(registry) / "registry", forget={"train": RECIPE, "gates": LAX}
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
            print(*start(settings).measure.remote(pairs).result(), sep="\n")
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
