"""Measures the speed of HTTP: `python -m benchmarks.http_speed jpeg|noop [options]`; see `--help`.

`jpeg` measures how many JPEG images a second `serving` answers, as a ratio to the engine's forward
pass alone in as many processes, at the batch size that the server reached. `noop` uses a model that
costs nearly nothing, so that it compares the servers around the model: ours, a plain Ray Serve
deployment behind the same ingress and, with `--litserve-python`, LitServe and BentoML.

All servers are up at once and take turns. The processes of the others are stopped meanwhile, since
idle ones cost CPU time too: ours a tenth of a core, LitServe's without a wait more than one. Ratios
are taken within a round; the median of the rounds is printed. The load comes from wrk
(`apt install wrk`) on the same cores. Its CPU time, which the servers don't have, is printed too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from benchmarks.load import ANSWER_S, Arm, Load, press
from benchmarks.peers.bare_serve import bare
from benchmarks.peers.model import Model
from forgetting.data.preprocess import Preprocess
from forgetting.models.backbone import BackboneSpec, build_model, freeze, save_backbone
from serving.app import prepare, running
from serving.config.home import home_of
from serving.config.settings import Settings
from serving.config.sources import load_settings
from serving.replica.engines.choice import CANDIDATES, choose

MODELS: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "noop": (
        "vit_tiny_patch16_224",
        32,
        {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 1},
    ),
    "tiny": ("vit_tiny_patch16_224", 224, {}),
    "small": ("vit_small_patch16_224", 224, {}),
    "base": ("vit_base_patch16_224", 224, {}),
}
ROOT = Path(__file__).parents[1]
PEER_S = 120.0
AWAKE_S = 1.0
RUN_UP_S = 5.0


def make_backbone(name: str, folder: Path) -> None:
    """Save a backbone with random weights, which take as long as trained ones.

    Its classes are those of the digits data set, without which the server would not start.
    """
    model, side, sizes = MODELS[name]
    names = tuple(str(digit) for digit in range(10))
    spec = BackboneSpec(model, sizes, names, Preprocess((3, side, side), (0.5,) * 3, (0.5,) * 3))
    torch.manual_seed(0)
    save_backbone(folder, freeze(build_model(spec), spec))


def jpeg(side: int) -> bytes:
    """A JPEG image with structure, so that it compresses as photographs do."""
    pixels = torch.randint(0, 255, (side // 8, side // 8, 3), dtype=torch.uint8).numpy()
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@contextlib.contextmanager
def alone(arm: Arm, arms: Sequence[Arm]) -> Iterator[None]:
    """While the block lasts, stop all processes that were started here but those of `arm`."""
    mine = psutil.Process().children(recursive=True)
    peers = {a.process: _tree(a.process) for a in arms if a.process is not None}
    theirs = {each for tree in peers.values() for each in tree}
    with only(set(peers[arm.process]) if arm.process is not None else set(mine) - theirs):
        yield


@contextlib.contextmanager
def only(own: Container[psutil.Process]) -> Iterator[None]:
    """While the block lasts, stop all processes that were started here but `own`."""
    stopped = [each for each in psutil.Process().children(recursive=True) if each not in own]
    for each in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGCONT)


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def wake(arm: Arm) -> None:
    """Wait until `arm` has answered every request for `AWAKE_S`. Our replicas need that: they were
    stopped for longer than their lease and must get a new one."""
    well = time.monotonic()
    with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
        while time.monotonic() < well + AWAKE_S:
            found = client.post(arm.url, content=arm.body, headers={"Content-Type": arm.kind})
            if found.status_code != 200:
                well = time.monotonic()


def by_turns(
    arms: Mapping[str, Callable[[], Load]], *, rounds: int, show: bool = True
) -> dict[str, list[Load]]:
    """Run each arm once a round, in another order each round."""
    taken: dict[str, list[Load]] = {name: [] for name in arms}
    shuffled = random.Random(0)
    order = list(arms)
    for number in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            taken[name].append(arms[name]())
        if show:
            line = ", ".join(f"{name} {loads[-1].a_second:.0f}" for name, loads in taken.items())
            print(f"    round {number + 1}: {line}", flush=True)
    return taken


def report(taken: Mapping[str, list[Load]], ours: str) -> None:
    for name, loads in taken.items():
        rate = median(load.a_second for load in loads)
        line = f"  {name}: {rate:.1f} a second"
        if sum(load.failed for load in loads):
            line += f", {sum(load.failed for load in loads)} FAILED"
        if any(load.client_cpu for load in loads):
            line += f"; the client took {median(load.client_cpu for load in loads):.2f} of a core"
        if name != ours:
            shares = [a.a_second / b.a_second for a, b in zip(taken[ours], loads, strict=True)]
            line += f"; ours / this {median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        print(line, flush=True)


def _compute(backbone: Path, engine: str, pipe: Connection) -> None:
    """The main function of a process that only computes forward passes.

    It receives (batch, seconds) and sends back images a second; None ends it.
    """
    model = Model(backbone, engine)
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        batch, seconds = asked
        images = torch.randn(batch, *model.size)
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            model.forward(images)
            done += batch
        pipe.send(done / (time.perf_counter() - end + seconds))


@contextlib.contextmanager
def bare_engine(backbone: Path, engine: str, processes: int) -> Iterator[Callable[..., Load]]:
    """As many processes as there are replicas, each with one thread. The server's processes are
    stopped while these compute."""
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(processes)]
    own = []
    for _, theirs in pairs:
        worker = spawn.Process(target=_compute, args=(backbone, engine, theirs), daemon=True)
        worker.start()
        own.append(psutil.Process(worker.pid))
    for mine, _ in pairs:
        mine.recv()

    def compute(batch: int, seconds: float) -> Load:
        with only(own):
            for mine, _ in pairs:
                mine.send((batch, seconds))
            return Load(sum(mine.recv() for mine, _ in pairs), 0, 0.0)

    yield compute
    for mine, _ in pairs:
        mine.send(None)


def batches(settings: Settings) -> tuple[float, float]:
    """(forward passes, images) that all replicas have computed so far."""
    page = httpx.get(f"{settings.url}/metrics", trust_env=False).text
    (family,) = [f for f in text_string_to_metric_families(page) if f.name == "lethe_batch_size"]
    found = {"count": 0.0, "sum": 0.0}
    for sample in family.samples:
        part = sample.name.rpartition("_")[2]
        if part in found:
            found[part] += sample.value
    return found["count"], found["sum"]


def run_jpeg(settings: Settings, options: argparse.Namespace, backbone: Path) -> None:
    engine = settings.engine.name
    ours = Arm(f"{settings.url}/v1/predict", jpeg(options.side), "image/jpeg")
    with running(settings), bare_engine(backbone, engine, settings.replicas) as compute:
        load = {"connections": options.connections, "seconds": options.seconds}
        press(options.wrk, ours, connections=options.connections, seconds=2)
        time.sleep(2.5)  # replicas push their numbers once a second
        before = batches(settings)
        press(options.wrk, ours, connections=options.connections, seconds=4)
        time.sleep(2.5)
        after = batches(settings)
        size = round((after[1] - before[1]) / (after[0] - before[0]))
        print(
            f"{options.model}, {engine}, {settings.ingress} ingress, JPEG of {options.side} pixels "
            f"({len(ours.body):,} bytes), {options.connections} connections, batches of {size}"
        )

        def served() -> Load:
            wake(ours)
            return press(options.wrk, ours, run_up=RUN_UP_S, **load)

        arms = {"HTTP": served, "engine": lambda: compute(size, options.seconds)}
        report(by_turns(arms, rounds=options.rounds), "HTTP")


@contextlib.contextmanager
def peer(
    command: Sequence[str], url: str, arm: Arm, environment: Mapping[str, str]
) -> Iterator[Arm]:
    """Start a server of the comparison as a command, and wait until it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + PEER_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    headers = {"Content-Type": arm.kind}
                    found = httpx.post(url, content=arm.body, headers=headers, trust_env=False)
                    if found.status_code == 200 and "predictions" in found.text:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} does not answer:\n{log.read().decode()[-2000:]}")
                time.sleep(0.5)
            yield replace(arm, process=process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_noop(settings: Settings, options: argparse.Namespace, backbone: Path) -> None:
    image = jpeg(options.side)
    workers, engine = settings.replicas, settings.engine.name
    tell = {"BENCH_BACKBONE": str(backbone), "BENCH_ENGINE": engine, "OMP_NUM_THREADS": "1"}
    tell |= {"BENCH_WORKERS": str(workers), "BENTOML_DO_NOT_TRACK": "true"}
    with running(settings), contextlib.ExitStack() as stack:
        serve.run(
            bare(
                str(backbone),
                engine,
                replicas=workers,
                size=settings.batch.size,
                wait_ms=settings.batch.wait_ms,
            ),
            name="bare",
            route_prefix="/bare",
        )
        arms = {
            "ours": Arm(f"{settings.url}/v1/predict", image, "image/jpeg"),
            "bare Ray Serve": Arm(f"{settings.url}/bare/", image, "image/jpeg"),
        }
        if options.litserve_python:
            here = Path(__file__).resolve().parent
            encoded = json.dumps({"image": base64.b64encode(image).decode()}).encode()
            port = free_port()
            lit = Arm(f"http://127.0.0.1:{port}/predict", encoded, "application/json")
            command = [options.litserve_python, str(here / "peers" / "lit.py"), str(port)]
            command += [str(workers), str(settings.batch.size)]
            command += [str(options.litserve_wait_ms / 1000)]
            arms["LitServe"] = stack.enter_context(peer(command, lit.url, lit, tell))
            port = free_port()
            bento = Arm(f"http://127.0.0.1:{port}/predict", image, "image/jpeg")
            command = [options.litserve_python, "-m", "bentoml", "serve", "--port", str(port)]
            command += ["--host", "127.0.0.1", "benchmarks.peers.bento:Classifier"]
            arms["BentoML"] = stack.enter_context(peer(command, bento.url, bento, tell))
        else:
            print("without LitServe and BentoML: --litserve-python names an interpreter with both")
        print(
            f"{options.model}, {engine}, {settings.ingress} ingress, JPEG of {options.side} pixels "
            f"({len(image):,} bytes), {options.connections} connections"
        )

        def pressed(arm: Arm) -> Callable[[], Load]:
            def pressed_alone() -> Load:
                with alone(arm, list(arms.values())):
                    wake(arm)
                    return press(
                        options.wrk, arm, connections=options.connections, seconds=options.seconds
                    )

            return pressed_alone

        presses = {name: pressed(arm) for name, arm in arms.items()}
        by_turns(presses, rounds=1, show=False)
        report(by_turns(presses, rounds=options.rounds), "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("jpeg", "noop"))
    parser.add_argument("--model", choices=tuple(MODELS))
    parser.add_argument("--engine", choices=("auto", *CANDIDATES), default="auto")
    parser.add_argument("--ingress", choices=("python", "haproxy"), default="haproxy")
    parser.add_argument("--side", type=int, help="side of the JPEG in pixels [the model's]")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, help="length of a round [15 for jpeg, 5 for noop]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--wrk", default=shutil.which("wrk"), help="the load generator")
    parser.add_argument("--litserve-python", help="an interpreter with litserve and bentoml")
    parser.add_argument(
        "--litserve-wait-ms",
        type=float,
        default=0.0,
        help="milliseconds that LitServe waits for a batch to fill; ours doesn't wait",
    )
    options = parser.parse_args()
    if options.wrk is None:
        sys.exit("there is no wrk: `apt install wrk`, or --wrk PATH")
    options.model = options.model or {"jpeg": "tiny", "noop": "noop"}[options.what]
    options.side = options.side or MODELS[options.model][1]
    options.seconds = options.seconds or {"jpeg": 15.0, "noop": 5.0}[options.what]
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        backbone = Path(folder) / "backbone"
        make_backbone(options.model, backbone)
        settings = load_settings(
            home=Path(folder) / "home",
            port=free_port(),
            operator={"port": free_port()},
            backbone={"directory": backbone},
            replicas=options.replicas,
            ingress=options.ingress,
            engine={"name": options.engine},
        )
        choice = choose(
            settings.engine,
            prepare(settings),
            batch=None,
            threads=settings.threads,
            graphs=home_of(settings).engines,
        )
        print(f"engine: {choice}", flush=True)
        engine = settings.engine.model_copy(update={"name": choice.name})
        batch = settings.batch.model_copy(update={"size": choice.batch})
        settings = settings.model_copy(update={"engine": engine, "batch": batch})
        began = os.getloadavg()[0]
        {"jpeg": run_jpeg, "noop": run_noop}[options.what](settings, options, backbone)
        print(f"  load average {began:.1f} before, {os.getloadavg()[0]:.1f} after", flush=True)


if __name__ == "__main__":
    main()
