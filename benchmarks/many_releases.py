"""Measures how much longer a replica starts with 1,000 releases in its registry than with one.

    python benchmarks/many_releases.py [--releases 1000] [--turns 15] [--serve 1] [--json]

Both registries are written with the functions of `registry.publish` and end in the same release:
one adapter for one class. In the long one, classes were forgotten and restored before, each time
with an adapter of its own: real files with low-rank pairs that nobody trained. One process does, by
turns, what a replica does at its start: load the backbone, make the engine, read the ledger (with
and without the checkpoint of an earlier start) and build the active release. Imports and the start
of the process are not measured. `--serve N` times N whole starts of `lethe serve` on each registry,
with two replicas.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, to_files
from forgetting.models.backbone import Backbone
from forgetting.models.golden import golden_image
from registry.fold.state import State
from registry.publish.declarations import restore_subjects
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, confirm_release, publish_release, roll_back
from serving.config.backbones import open_backbone, prepare_backbone
from serving.config.home import (
    Home,
    home_of,
    open_ledger,
    open_subjects,
    prepare_home,
    signer,
    wait_for_ledger,
)
from serving.config.sources import load_settings
from serving.replica.engines.choice import make_engine
from serving.replica.release_reader import ReleaseReader
from serving.replica.slot import Slot

RANK = 4
START_S = 180.0


class Past:
    """Writes a registry's history with the records that control and the coordinator write."""

    def __init__(self, home: Home, backbone: Backbone) -> None:
        prepare_home(home)
        self._ledger = open_ledger(home)
        self._subjects = open_subjects(home)
        self._operator, self._publisher = signer(home, "operator"), signer(home, "publisher")
        self._backbone = backbone
        self._acts = 0

    @property
    def state(self) -> State:
        return self._ledger.state

    def forget(self, name: str) -> None:
        """Add two releases: one that masks the class, one whose weights have forgotten it."""
        job = request_forget(
            self._ledger,
            self._operator,
            subjects=[self._subjects.assign(name)],
            backbone=self._backbone.fingerprint,
            **self._origin(),
        )
        publish_release(self._ledger, self._publisher, kind="guard", job=job.id, **self._origin())
        self._serve()
        stack = self.state.active_release.adapters
        record_trained(
            self._ledger,
            self._publisher,
            job=job.id,
            files=to_files(self._adapter(job.subjects, stack)),
            stack=stack,
            report=json.dumps({"job": job.id}).encode(),
            **self._origin(),
        )
        publish_release(self._ledger, self._publisher, kind="adapter", job=job.id, **self._origin())
        self._serve()

    def restore(self, name: str) -> None:
        """Add one release, with the adapters of an older one whose weights know the class."""
        subjects = [self._subjects.assign(name)]
        restore_subjects(self._ledger, self._operator, subjects=subjects, **self._origin())
        to = self.state.release_without(frozenset(subjects))
        roll_back(self._ledger, self._operator, to=to, **self._origin())
        self._serve()

    def _serve(self) -> None:
        release = self.state.last_release
        activate_release(self._ledger, self._operator, release=release, **self._origin())
        confirm_release(
            self._ledger,
            self._operator,
            release=release,
            members={"1-replica": "confirmed", "2-replica": "confirmed"},
            ms=12.5,
            **self._origin(),
        )

    def _origin(self) -> dict[str, str]:
        self._acts += 1
        return {"actor": "ops", "reason": "Art. 17", "request_id": f"r-{self._acts:06d}"}

    def _adapter(self, subjects: tuple[str, ...], stack: tuple[str, ...]) -> Adapter:
        """An adapter with random low-rank pairs for the last block's FFN, new ones each time."""
        generator = torch.Generator().manual_seed(self._acts)
        paths = [name for name, _ in self._backbone.model.named_modules() if ".mlp.fc" in name]
        pairs = {}
        for path in paths[-2:]:
            out_features, in_features = self._backbone.model.get_submodule(path).weight.shape
            a = torch.randn(RANK, in_features, generator=generator)
            b = torch.randn(out_features, RANK, generator=generator) / 1000
            pairs[path] = (a, b)
        facts = AdapterFacts(
            backbone=self._backbone.fingerprint,
            stack=stack,
            subjects=subjects,
            method="benchmark",
            config={},
            seed=self._acts,
            steps=0,
            data_digest="sha256:" + "0" * 64,
            code_version="0",
            groups_kept=1,
            groups_total=len(paths) // 2,
        )
        return Adapter(pairs, facts)


def written(home: Home, backbone: Backbone, *, releases: int) -> float:
    """Write a registry that ends in one adapter for one class; return how many seconds it took."""
    began = time.perf_counter()
    past = Past(home, backbone)
    names = backbone.spec.classes
    turn = 0
    while past.state.last_release + 5 <= releases:  # forget and restore, then the last forget
        past.forget(names[turn % len(names)])
        past.restore(names[turn % len(names)])
        turn += 1
    past.forget(names[0])
    return time.perf_counter() - began


def replica_start(folder: Path) -> dict[str, float]:
    """Do what `Recognizer` does until it serves a release; return the seconds of each part."""
    began, cpu = time.perf_counter(), time.process_time()
    settings = load_settings(home=folder, engine={"name": "onnxruntime"})
    home, backbone = home_of(settings), open_backbone(settings)
    engine = make_engine(settings.engine, backbone, threads=1, graphs=home.engines)
    slot = Slot(engine, golden_image(backbone.spec.preprocess.input_size))
    loaded = time.perf_counter()
    ledger = wait_for_ledger(home, read_only=True)
    read = time.perf_counter()
    reader = ReleaseReader(ledger, open_subjects(home, read_only=True), backbone)
    slot.flip(reader.ready(reader.active(), slot))
    built = time.perf_counter()
    return {
        "s": built - began,
        "cpu": time.process_time() - cpu,
        "read": read - loaded,
        "build": built - read,
        "releases": ledger.state.last_release,
        "records": ledger.state.seq,
    }


def server_start(home: Path, *, port: int) -> float:
    """Seconds from the start of `lethe serve` until both replicas serve."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--engine", "onnxruntime"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(home),
        cwd=home,
    )
    stdout = process.stdout
    if stdout is None:
        raise RuntimeError("no output to read")
    try:
        for line in stdout:
            if line.startswith("serving on"):
                return time.perf_counter() - began
        raise RuntimeError("lethe serve ended before it served")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=START_S)


def _environment(home: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    return {**own, "LETHE_HOME": str(home), "OMP_NUM_THREADS": "1"}


def measure(top: Path, *, releases: int, turns: int, serves: int) -> dict[str, float]:
    settings = load_settings()
    prepare_backbone(settings, lambda _: None)
    backbone = open_backbone(settings)
    homes = {"one": top / "one", "many": top / "many"}
    figures: dict[str, float] = {}
    for name, folder in homes.items():
        shutil.copytree(settings.home_path / "backbones", folder / "backbones")
        wanted = 1 if name == "one" else releases
        home = home_of(load_settings(home=folder))
        figures[f"{name}_written_s"] = written(home, backbone, releases=wanted)
    torch.set_num_threads(1)
    samples: dict[str, list[dict[str, float]]] = {}
    for turn in range(turns + 1):
        for kept in (False, True):
            for name, folder in homes.items():
                if not kept:
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                found = replica_start(folder)
                if turn:  # the first turn also wrote the engine's graph
                    samples.setdefault(f"{name}{'_checkpointed' * kept}", []).append(found)
    for name, found in samples.items():
        for key in ("s", "cpu", "read", "build"):
            figures[f"{name}_{key}_ms"] = 1e3 * statistics.median(row[key] for row in found)
    for name in homes:
        figures[f"{name}_releases"] = samples[name][0]["releases"]
        figures[f"{name}_records"] = samples[name][0]["records"]
        figures[f"{name}_registry_files"] = sum(
            path.is_file() for path in (homes[name] / "registry").rglob("*")
        )
    for suffix in ("", "_checkpointed"):
        pairs = list(zip(samples[f"many{suffix}"], samples[f"one{suffix}"], strict=True))
        for key, label in (("s", "start_ratio"), ("cpu", "start_cpu_ratio")):
            figures[f"{label}{suffix}"] = statistics.median(m[key] / o[key] for m, o in pairs)
    starts: dict[str, list[float]] = {name: [] for name in homes}
    for turn in range(serves):
        for name, folder in homes.items():
            starts[name].append(server_start(folder, port=8100 + 2 * turn))
    for name, taken in starts.items():
        if taken:
            figures[f"{name}_server_start_s"] = statistics.median(taken)
    if serves:
        figures["server_start_ratio"] = (
            figures["many_server_start_s"] / figures["one_server_start_s"]
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--releases", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument(
        "--serve", type=int, default=1, help="whole starts on each registry; 0: none"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        figures = measure(
            Path(top), releases=arguments.releases, turns=arguments.turns, serves=arguments.serve
        )
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:32}{figure:12.2f}")


if __name__ == "__main__":
    main()
