"""Measures engines, and what adapters cost on them: `python benchmarks/engines.py [model ...]`.

Models: `digits` (the demo's), `small` (112 pixels, 256 wide, 6 blocks), `base` (ViT-B/16 at 224);
all with random weights, which take as long as trained ones. One thread. What is compared takes
turns in one process. Figures are CPU times of the calling thread, since other work on the machine
changes them less than wall times. Ratios are taken within a turn; the median of the turns is
printed. For the first build, wall times are printed too.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch

from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, from_files, to_files
from forgetting.adapter.stack import EffectiveState, effective_state
from forgetting.data.preprocess import Preprocess
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from forgetting.models.targets import find_groups
from serving.replica.engines import Engine
from serving.replica.engines.onnx_runtime import OnnxEngine
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.slot import Slot

RANK = 8
DEPTHS = (1, 10, 100)
TURNS_S = 15.0
FEWEST_TURNS = 7
SIZES: Mapping[str, tuple[int, int, dict[str, int]]] = {
    "digits": (1, 16, {"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}),
    "small": (3, 112, {"patch_size": 8, "embed_dim": 256, "depth": 6, "num_heads": 4}),
    "base": (3, 224, {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}),
}


def random_backbone(name: str) -> Backbone:
    channels, side, sizes = SIZES[name]
    preprocess = Preprocess((channels, side, side), (0.5,) * channels, (0.5,) * channels)
    names = tuple(f"class {i}" for i in range(10 if name == "digits" else 1000))
    spec = BackboneSpec("vit_tiny_patch16_224", {"img_size": side, **sizes}, names, preprocess)
    torch.manual_seed(0)
    return freeze(build_model(spec), spec)


def random_adapter(backbone: Backbone, *, seed: int) -> Adapter:
    """An adapter with random pairs for every second group."""
    groups = find_groups(backbone.model)[::2]
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path in (path for group in groups for path in group.paths):
        out, width = backbone.model.get_parameter(f"{path}.weight").shape
        a = torch.randn(RANK, width, generator=generator) / 100
        pairs[path] = (a, torch.randn(out, RANK, generator=generator) / 100)
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("0" * 32,),
        method="random",
        config={},
        seed=seed,
        steps=0,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=len(groups),
        groups_total=len(find_groups(backbone.model)),
    )
    return Adapter(pairs, facts)


def by_turns(work: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU milliseconds of each item of `work` in each turn; the order differs from turn to turn."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    end = time.perf_counter() + TURNS_S
    order, shuffled = list(work), random.Random(0)
    while time.perf_counter() < end or len(taken[order[0]]) < FEWEST_TURNS:
        shuffled.shuffle(order)
        for name in order:
            began = time.thread_time()
            work[name]()
            taken[name].append((time.thread_time() - began) * 1000)
    return taken


def ratio(taken: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median of the ratios of two items' times within the same turn."""
    return median(a / b for a, b in zip(taken[over], taken[under], strict=True))


def compare_engines(backbone: Backbone, engines: Mapping[str, Engine]) -> None:
    for batch in (1, 4):
        images = torch.randn(batch, *backbone.spec.preprocess.input_size)
        bare = {name: engine.build(EffectiveState()) for name, engine in engines.items()}
        ms = by_turns({n: partial(f, images) for n, f in bare.items()})
        shown = ", ".join(f"{name} {median(t) / batch:.2f}" for name, t in ms.items())
        print(
            f"  bare, {batch} at a time, CPU ms an image: {shown}; "
            f"torch / onnxruntime {ratio(ms, 'torch', 'onnxruntime'):.2f}"
        )


def stack_up(backbone: Backbone, engines: Mapping[str, Engine], stack: list[Adapter]) -> None:
    images = torch.randn(2, *backbone.spec.preprocess.input_size)
    states = {t: effective_state(backbone.model, stack[:t]) for t in DEPTHS}
    for name, engine in engines.items():
        forwards = {"0": engine.build(EffectiveState())}
        forwards |= {str(t): engine.build(state) for t, state in states.items()}
        ms = by_turns({t: partial(f, images) for t, f in forwards.items()})
        shown = ", ".join(f"t={t} {ratio(ms, '0', str(t)):.3f}" for t in DEPTHS)
        print(f"  {name}: throughput with t adapters / bare: {shown}")


def resident_bytes() -> int:
    """Resident memory of this process. With glibc, freed memory that the allocator keeps is given
    back first: a build frees some, and it would be counted."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def memory(backbone: Backbone, engines: Mapping[str, Engine], stack: list[Adapter]) -> None:
    probe = torch.zeros(1, *backbone.spec.preprocess.input_size)
    for name, engine in engines.items():
        slot = Slot(engine, probe, resident=64)
        releases = max(4, min(60, round(4e8 / changed_bytes(backbone, stack[0]))))
        for i in range(releases + 1):
            if i == 1:  # the first one also allocates memory that all share
                before = resident_bytes()
            slot.forward_for((str(i),), partial(effective_state, backbone.model, [stack[i]]))
        each = (resident_bytes() - before) / releases
        times = each / changed_bytes(backbone, stack[0])
        print(
            f"  {name}: memory of a resident release / its changed weights: {times:.2f} "
            f"({each / 1e6:.1f} MB each, {releases} of them)"
        )


def changed_bytes(backbone: Backbone, adapter: Adapter) -> int:
    weights = (backbone.model.get_parameter(f"{path}.weight") for path in adapter.pairs)
    return sum(weight.numel() * weight.element_size() for weight in weights)


def read(contents: list[dict[str, bytes]], backbone: Backbone) -> EffectiveState:
    adapters = [from_files(files, backbone) for files in contents]
    return effective_state(backbone.model, adapters)


def first_build(backbone: Backbone, engines: Mapping[str, Engine], stack: list[Adapter]) -> None:
    """Time from the adapters' bytes to a forward pass that was checked once."""
    probe = torch.zeros(1, *backbone.spec.preprocess.input_size)
    for name, engine in engines.items():
        for depth in (1, 10):
            contents = [to_files(adapter) for adapter in stack[:depth]]
            wall, cpu = [], []
            for _ in range(5):
                slot = Slot(engine, probe)
                began, began_cpu = time.perf_counter(), time.process_time()
                slot.forward_for(("new",), partial(read, contents, backbone))
                wall.append(time.perf_counter() - began)
                cpu.append(time.process_time() - began_cpu)
            print(
                f"  {name}: build of a release of {depth} adapters: {median(wall):.2f} s "
                f"(best {min(wall):.2f}; CPU {median(cpu):.2f})"
            )


def start(backbone: Backbone) -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for _ in range(2):
            began = time.process_time()
            engine = OnnxEngine(backbone, graphs=Path(folder))
            times.append(time.process_time() - began)
        kept = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(
        f"  onnxruntime at start, CPU s: {times[0]:.2f} with the export, {times[1]:.2f} with the "
        f"kept graph of {kept / 1000:.0f} kB (both with two checks against torch)"
    )
    return engine


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    for model in models:
        backbone = random_backbone(model)
        count = sum(parameter.numel() for parameter in backbone.model.parameters())
        print(f"{model}: {count / 1e6:.1f} M parameters", flush=True)
        engines: dict[str, Engine] = {
            "torch": TorchEngine(backbone.model),
            "onnxruntime": start(backbone),
        }
        stack = [random_adapter(backbone, seed=seed) for seed in range(max(DEPTHS))]
        compare_engines(backbone, engines)
        stack_up(backbone, engines, stack)
        memory(backbone, engines, stack)
        first_build(backbone, engines, stack)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="model", help=f"{', '.join(SIZES)}; or all")
    chosen = parser.parse_args().models
    if unknown := set(chosen) - set(SIZES):
        parser.error(f"no model {min(unknown)!r}; there are {', '.join(SIZES)}")
    main(chosen or list(SIZES))
