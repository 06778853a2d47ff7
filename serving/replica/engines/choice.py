"""Chooses the engine and the batch size: what the settings name, or what is fastest here.

The process that starts the server measures once and keeps the result beside the graphs under
LETHE_HOME. It passes its choice to the replicas, so that all use the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from forgetting.models.backbone import Backbone
from forgetting.models.golden import TOLERANCE
from registry.store.durable_file import write_durably
from serving.config.settings import EngineName, EngineSettings
from serving.replica.engines import Engine, EngineError
from serving.replica.engines.onnx_graph import graph_name
from serving.replica.engines.onnx_runtime import OnnxEngine
from serving.replica.engines.torch_compiled import CompiledEngine
from serving.replica.engines.torch_eager import TorchEngine

log = logging.getLogger(__name__)

CANDIDATES: tuple[EngineName, ...] = ("torch", "onnxruntime")
"""What `auto` chooses from on a CPU. `torch-compiled` takes minutes to start."""
_BFLOAT16_TOLERANCE = 0.1  # 8 bits of a number, through every layer
LARGEST_BATCH = 16
BATCHES = (4, LARGEST_BATCH)
"""Batch sizes that are tried on a CPU. A larger batch shares the fixed cost of a pass among more
images, but less of it fits the caches. Which is faster depends on model, engine and machine."""
_TURNS = 20
_FEWEST_TURNS = 2
_LONGEST_S = 6.0

Pass = tuple[EngineName, int]
"""An engine and a batch size."""


@dataclass(frozen=True)
class Choice:
    """The engine that serves, its largest batch, and why."""

    name: EngineName
    batch: int
    why: str
    ms: Mapping[Pass, float] = field(default_factory=dict)
    """Milliseconds an image, for what was measured."""

    def __str__(self) -> str:
        measured = ", ".join(
            f"{name} {ms:.3g} ms an image in batches of {batch}"
            for (name, batch), ms in sorted(self.ms.items())
        )
        return (
            f"{self.name}, batches of at most {self.batch} "
            f"({self.why}{': ' if measured else ''}{measured})"
        )


def make_engine(
    settings: EngineSettings, backbone: Backbone, *, threads: int, graphs: Path
) -> Engine:
    """The engine that the settings name. `auto` must have been resolved by `choose` before.

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
    """How far the golden figures of an engine may be off (`forgetting.models.golden`)."""
    return _BFLOAT16_TOLERANCE if settings.precision == "bfloat16" else TOLERANCE


def choose(
    settings: EngineSettings,
    backbone: Backbone,
    *,
    batch: int | None,
    threads: int,
    graphs: Path,
) -> Choice:
    """Choose the engine and the largest batch for all replicas.

    Args:
        settings: What the operator asks for.
        backbone: What is to be served.
        batch: The largest batch. None: on a CPU the fastest of `BATCHES`, else `LARGEST_BATCH`.
        threads: Number of threads of one forward pass.
        graphs: Folder of kept graphs and measurements.

    Raises:
        EngineError: The settings name an engine that can't run this backbone. With `auto` such an
            engine is left out, and the log says why.
    """
    plain = (settings.device, settings.precision) == ("cpu", "float32")
    if not plain or settings.name == "torch-compiled":
        largest = batch or LARGEST_BATCH
        if settings.name != "auto":
            return Choice(settings.name, largest, "as asked for")
        why = f"the only one for {settings.device} and {settings.precision}"
        return Choice("torch", largest, why)
    engines: dict[EngineName, Engine] = {}
    why = ""
    for name in CANDIDATES if settings.name == "auto" else (settings.name,):
        named = settings.model_copy(update={"name": name})
        try:
            engines[name] = make_engine(named, backbone, threads=threads, graphs=graphs)
        except EngineError as error:
            if settings.name != "auto":
                raise
            log.warning("serving without %s: %s", name, error)
            why = str(error)
    passes = [(name, size) for name in engines for size in ((batch,) if batch else BATCHES)]
    memory = graphs / f"{_occasion(backbone, threads)}.json"
    ms = _remembered(memory)
    known = all(each in ms for each in passes)
    if not known and len(passes) > 1:
        bare = EffectiveState()
        forwards = {name: engine.build(bare) for name, engine in engines.items()}
        ms |= measure(forwards, passes, backbone.spec.preprocess.input_size, threads=threads)
        _remember(memory, ms)
    if settings.name != "auto":
        why = "as asked for"
    elif not why:
        why = "measured at an earlier start" if known else "measured now"
    measured = {each: ms[each] for each in passes if each in ms}
    name, size = min(passes, key=lambda each: measured.get(each, math.inf))
    return Choice(name, size, why, measured)


def measure(
    forwards: Mapping[EngineName, Callable[[Tensor], Tensor]],
    passes: Sequence[Pass],
    size: tuple[int, int, int],
    *,
    threads: int,
) -> dict[Pass, float]:
    """Milliseconds an image for each of `passes`.

    They take turns, and the best of each counts: other work on the machine makes some turns slower
    but none faster.

    Args:
        forwards: The bare forward pass of each engine.
        passes: What to measure.
        size: Of an image, (C, H, W).
        threads: For PyTorch; ONNX Runtime's session has its own number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best = dict.fromkeys(passes, math.inf)
        end = time.perf_counter() + _LONGEST_S
        for turn in range(_TURNS):
            if turn >= _FEWEST_TURNS and time.perf_counter() > end:
                break
            for name, batch in passes:
                images = torch.zeros(batch, *size)
                began = time.perf_counter()
                forwards[name](images)
                took = (time.perf_counter() - began) * 1000 / batch
                best[name, batch] = min(best[name, batch], took)
    finally:
        torch.set_num_threads(before)
    return best


def _occasion(backbone: Backbone, threads: int) -> str:
    """A name for what a measurement is valid for: a kind of backbone, a kind of CPU, versions."""
    facts = [
        graph_name(backbone),
        onnxruntime.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        os.cpu_count(),
        threads,
    ]
    return "speed-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _remembered(path: Path) -> dict[Pass, float]:
    """The kept measurement; empty if there is none or the file is damaged."""
    try:
        found = json.loads(path.read_bytes())["ms_per_image"]
        return {
            (name, int(batch)): float(ms)
            for name in CANDIDATES
            for batch, ms in found.get(name, {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(path: Path, measured: Mapping[Pass, float]) -> None:
    """Without a lock: of two starts at once each measures for itself, and either's file will do."""
    ms = {
        name: {str(batch): value for (of, batch), value in measured.items() if of == name}
        for name in CANDIDATES
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps({"ms_per_image": ms}).encode())
    except OSError as error:
        log.warning("the measured speed of engines can't be saved for the next start: %s", error)
