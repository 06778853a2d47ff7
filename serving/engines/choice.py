"""Which engine serves: the one that is named, or with `auto` the faster one on this machine.

Measured once and remembered beside the graphs under LETHE_HOME. Replicas are told the outcome, so
that all of one server use the same engine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from forgetting.backbone import Backbone
from forgetting.golden import TOLERANCE
from forgetting.stack import EffectiveState
from serving.engines import Engine, EngineError, Forward
from serving.engines.onnx_graph import graph_name, write_whole
from serving.engines.onnx_runtime import OnnxEngine
from serving.engines.torch_compiled import CompiledEngine
from serving.engines.torch_eager import TorchEngine
from serving.settings import EngineName, EngineSettings

log = logging.getLogger(__name__)

CANDIDATES: tuple[EngineName, ...] = ("torch", "onnxruntime")
"""What `auto` chooses from on a CPU. Compiling takes minutes, so that one is for who asks."""
_BFLOAT16_TOLERANCE = 0.1  # 8 bits of a number, through every layer
_BATCH = 4
_TURNS = 20
_FEWEST_TURNS = 2
_LONGEST_S = 6.0


@dataclass(frozen=True)
class Choice:
    """The engine that serves, and why."""

    name: EngineName
    why: str
    ms: Mapping[EngineName, float] = field(default_factory=dict)
    """Milliseconds an image, by engine, where they were measured."""

    def __str__(self) -> str:
        measured = ", ".join(f"{name} {ms:.3g} ms an image" for name, ms in sorted(self.ms.items()))
        return f"{self.name} ({self.why}{': ' if measured else ''}{measured})"


def make_engine(
    settings: EngineSettings, backbone: Backbone, *, threads: int, graphs: Path
) -> Engine:
    """The engine that the settings name; `auto` must have been chosen by then.

    Raises:
        EngineError: It can't run this backbone here.
    """
    bfloat16 = settings.precision == "bfloat16"
    match settings.name:
        case "torch":
            return TorchEngine(backbone.model, device=settings.device, bfloat16=bfloat16)
        case "torch-compiled":
            return CompiledEngine(
                backbone.model,
                input_size=backbone.spec.preprocess.input_size,
                device=settings.device,
                bfloat16=bfloat16,
            )
        case "onnxruntime":
            return OnnxEngine(backbone, threads=threads, graphs=graphs)
        case "auto":
            raise EngineError("engine.name is still auto: choose one first")


def tolerance_of(settings: EngineSettings) -> float:
    """How far an engine may be off on the golden image (`forgetting.golden`)."""
    return _BFLOAT16_TOLERANCE if settings.precision == "bfloat16" else TOLERANCE


def choose(settings: EngineSettings, backbone: Backbone, *, threads: int, graphs: Path) -> Choice:
    """Say which engine every replica is to use.

    Args:
        settings: What was asked for.
        backbone: What is to be served.
        threads: That one forward pass uses.
        graphs: Folder of kept graphs and measurements.

    Raises:
        EngineError: ONNX Runtime was asked for by name and can't run this backbone. `auto` never
            fails for that: it takes `torch`, and logs why.
    """
    if settings.name == "onnxruntime":
        OnnxEngine(backbone, threads=threads, graphs=graphs)  # or else replicas would fail at it
    if settings.name != "auto":
        return Choice(settings.name, "as asked for")
    if settings.device != "cpu" or settings.precision != "float32":
        return Choice("torch", f"the only one for {settings.device} and {settings.precision}")
    memory = graphs / f"{_occasion(backbone, threads)}.json"
    known = _remembered(memory)
    if known:
        return Choice(_fastest(known), "measured at an earlier start", known)
    try:
        onnx = OnnxEngine(backbone, threads=threads, graphs=graphs)
    except EngineError as error:
        log.warning("serving with torch: %s", error)
        return Choice("torch", str(error))
    bare = EffectiveState()
    measured = measure(
        {"torch": TorchEngine(backbone.model).build(bare), "onnxruntime": onnx.build(bare)},
        torch.zeros(_BATCH, *backbone.spec.preprocess.input_size),
        threads=threads,
    )
    _remember(memory, measured)
    return Choice(_fastest(measured), "measured now", measured)


def measure(
    forwards: Mapping[EngineName, Forward], images: Tensor, *, threads: int
) -> dict[EngineName, float]:
    """Milliseconds an image, by turns, the best of each: what others do on the machine meanwhile
    slows some turns down, but makes none faster.

    Args:
        forwards: By engine.
        images: (B, C, H, W).
        threads: For PyTorch; ONNX Runtime has been told already.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for forward in forwards.values():
            forward(images)
        best = dict.fromkeys(forwards, math.inf)
        end = time.perf_counter() + _LONGEST_S
        for turn in range(_TURNS):
            if turn >= _FEWEST_TURNS and time.perf_counter() > end:
                break
            for name, forward in forwards.items():
                began = time.perf_counter()
                forward(images)
                best[name] = min(best[name], time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return {name: seconds * 1000 / len(images) for name, seconds in best.items()}


def _fastest(ms: Mapping[EngineName, float]) -> EngineName:
    return min(ms, key=ms.__getitem__)


def _occasion(backbone: Backbone, threads: int) -> str:
    """Names what a measurement holds for: a kind of backbone, of CPU, and versions."""
    facts = [
        graph_name(backbone),
        onnxruntime.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        os.cpu_count(),
        threads,
    ]
    return "speed-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _remembered(path: Path) -> dict[EngineName, float]:
    """Empty where nothing was measured, or what was written isn't whole."""
    try:
        found = json.loads(path.read_bytes())["ms_per_image"]
        return {name: float(found[name]) for name in CANDIDATES}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(path: Path, ms: Mapping[EngineName, float]) -> None:
    try:
        write_whole(path, json.dumps({"ms_per_image": dict(ms)}).encode())
    except OSError as error:
        log.warning("the engines' speed is not kept for the next start: %s", error)
