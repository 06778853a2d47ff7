"""Measures a forget task: `python benchmarks/forget_speed.py [--casia] [--steps N] [--images N]`.

First the images a second of Lethe's training step, as a ratio to a bare forward and backward pass
of the same backbone over as many images in the same run. The backbones are ViT-B/16 at 224 pixels
and the Face Transformer at 112, with all blocks trained (*select*) and with the upper half
(*refit*, where the lower half is cached); on a GPU also with bfloat16 and with compiled blocks.
Then a whole task, split into its phases: on digits, or with --casia on synthetic images of that
set's shape (100 classes, 112 pixels, the Face Transformer). Their weights and pixels are random,
since only shapes decide what a step costs.

There is no pass or fail. On a CPU, times are CPU seconds, which other work on the machine doesn't
lengthen. This times the product's own step, so it uses private parts of
`forgetting.training.sparse_lora`. The task's erasure, one matrix product an image, is not in the
steps; it is in the split.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import io
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import forgetting
from forgetting.data.image_set import ImageSet, digest_of, drawn_split, to_tensors
from forgetting.data.preprocess import Preprocess
from forgetting.data.samples import ForgetData, Samples
from forgetting.data.sources import digits
from forgetting.measure.accuracy import predict
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from forgetting.models.face_transformer import NAME
from forgetting.models.prefix import lowest_cut
from forgetting.models.targets import find_groups
from forgetting.report.card import to_markdown
from forgetting.task.run import run_task
from forgetting.training.config import TrainConfig, affordable_rank
from forgetting.training.lora import attach
from forgetting.training.pools import Pools, make_pools
from forgetting.training.pretrain import PretrainConfig, pretrain
from forgetting.training.sparse_lora import _Run

CLASSES = 100
FORGET = 20
MODELS = {
    "ViT-B/16, 224 px": ("vit_base_patch16_224", 224),
    "Face Transformer, 112 px": (NAME, 112),
}
# Phase -> (module in forgetting/, function). Their time includes everything that they call.
PHASES = {
    "prefix": (("training/pools", "make_pools"), ("training/pools", "advanced")),
    "select": (("training/sparse_lora", "select"),),
    "refit": (("training/sparse_lora", "refit"),),
    "report": (("task/outcome", "measure_task"),),
}


@dataclass(frozen=True)
class Variant:
    """How both sides of a ratio are computed."""

    name: str
    half: bool = False
    compiled: bool = False

    def context(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if self.half else nullcontext()


def variants(device: str) -> tuple[Variant, ...]:
    plain = Variant("float32")
    if device == "cpu":
        return (plain,)
    half = Variant("bfloat16", half=True)
    return (plain, half, Variant("bfloat16, compiled", half=True, compiled=True))


def rate(step: Callable[[], object], *, steps: int, images: int, device: str) -> float:
    """Images a second over `steps` calls, after one that may compile."""
    step()
    began = _clock(device)
    for _ in range(steps):
        step()
    return steps * images / (_clock(device) - began)


def _clock(device: str) -> float:
    """CPU seconds of this process; on a GPU wall seconds, after the GPU has finished its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compile_blocks(model: nn.Module) -> None:
    blocks = model.get_submodule("blocks")
    for block in blocks.children():
        block.compile()


def bare_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, variant: Variant) -> None:
    """A forward and a backward pass through the whole model, without an optimizer."""
    model.zero_grad(set_to_none=True)
    with variant.context(x.device.type):
        loss = F.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]


def lethe_run(model: nn.Module, data: ForgetData, *, batch: int, seed: int = 0) -> _Run:
    """A training run with all groups trained; each step uses `2 * batch` images."""
    generator = torch.Generator().manual_seed(seed)
    config = TrainConfig(forget_batch=batch, retain_batch=batch)
    pools: Pools = make_pools(model, data, original=model, copies=0, generator=generator)
    groups = find_groups(model)
    rank = affordable_rank(model, groups, config=config)
    attached = attach(model, groups, rank=rank, generator=generator)
    model.to(data.forget.x.device)  # the pairs were made on the CPU
    return _Run(
        model,
        pools,
        attached,
        blocks=len(groups),
        config=config,
        generator=generator,
        progress=None,
    )


def synthetic_data(model: nn.Module, *, pixels: int, count: int, device: str) -> ForgetData:
    """`count` forget and `count` retain images of noise, with four of each forgotten class."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * count, 3, pixels, pixels, generator=generator).to(device)
    known = int(predict(model, x[:1]).argmax())  # a class that the model recognises
    gone = (known + torch.arange(FORGET)) % CLASSES
    forget = Samples(x[:count], gone[torch.arange(count) // 4 % FORGET].to(device))
    kept = (known + FORGET + torch.arange(count) % (CLASSES - FORGET)) % CLASSES
    retain = Samples(x[count:], kept.to(device))
    none = Samples(x[:0], forget.y[:0])
    few = [Samples(samples.x[:4], samples.y[:4]) for samples in (forget, retain)]
    return ForgetData(forget, retain, none, few[0], few[1], gone.to(device))


def step_ratios(
    title: str, *, steps: int, batch: int, device: str
) -> Iterator[tuple[str, str, float, float, float]]:
    """(model, variant, bare images/s, ratio of a select step, ratio of a refit step)."""
    name, pixels = MODELS[title]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = timm.create_model(name, num_classes=CLASSES).to(device).eval()
    data = synthetic_data(original, pixels=pixels, count=batch, device=device)
    x, y = torch.cat([data.forget.x, data.retain.x]), torch.cat([data.forget.y, data.retain.y])
    for variant in variants(device):
        timed = {"steps": steps, "images": 2 * batch, "device": device}
        bare = copy.deepcopy(original)
        model = copy.deepcopy(original).requires_grad_(False)
        if variant.compiled:
            compile_blocks(bare)
        before = rate(lambda m=bare, v=variant: bare_step(m, x, y, v), **timed)
        run = lethe_run(model, data, batch=batch)
        if variant.compiled:
            compile_blocks(run.model)

        def step(run: _Run = run, variant: Variant = variant) -> None:
            with variant.context(device):
                run._descend()

        select = rate(step, **timed)
        half = len(run.live) // 2
        run._keep(sorted(run.live, key=lambda group: group.index)[half:])
        assert run.cut == (half if lowest_cut(model) == 0 else run.cut)
        refit = rate(step, **timed)
        # The bare pass again: the mean of both makes up for a machine that changes its speed.
        after = rate(lambda m=bare, v=variant: bare_step(m, x, y, v), **timed)
        mean = (before + after) / 2
        yield title, variant.name, mean, select / mean, refit / mean


def casia_shapes(*, per_class: int, seed: int = 0) -> tuple[Backbone, ImageSet, list[str]]:
    """A Face Transformer with random weights, JPEG files of noise, and the classes to forget."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES, dtype=np.int64), per_class)
    files = tuple(_jpeg(rng) for _ in labels)
    split = drawn_split(labels, given=None, seed=seed, test_share=0.2, val_share=0.15)
    names = tuple(f"id{label:03}" for label in range(CLASSES))
    digest = digest_of(zip(files, labels.tolist(), split, strict=True))
    images = ImageSet("casia-shapes", names, labels, split, files, digest)
    preprocess = Preprocess((3, 112, 112), (0.0,) * 3, (1.0,) * 3)
    spec = BackboneSpec(NAME, {"img_size": 112}, names, preprocess)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = freeze(build_model(spec), spec)
    x, _ = to_tensors(images, range(4), preprocess)
    likely = predict(backbone.model, x).mean(dim=0).topk(FORGET).indices
    return backbone, images, [names[i] for i in likely.tolist()]


def _jpeg(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 256, size=(14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((112, 112), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def digits_task() -> tuple[Backbone, ImageSet, list[str]]:
    images = digits()
    trained = pretrain(images, config=PretrainConfig(steps=250, peak_rate=2e-3))
    return trained.backbone, images, ["3"]


def task_split(
    backbone: Backbone, images: ImageSet, forget: list[str], *, config: TrainConfig
) -> tuple[dict[str, float], str]:
    """CPU seconds of each phase of a task, and its report as Markdown."""
    profile = cProfile.Profile(time.process_time)
    result = profile.runcall(
        run_task,
        backbone,
        [],
        images=images,
        forget=forget,
        earlier=[],
        subjects={name: f"subject-{i}" for i, name in enumerate(forget)},
        stack_ids=[],
        config=config,
    )
    calls = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    root = Path(forgetting.__file__).parent

    def spent(module: str, function: str, *, caller: str | None = None) -> float:
        file = str(root / f"{module}.py")
        for (path, _, name), (_, _, _, cumulative, callers) in calls.items():
            if (path, name) == (file, function):
                if caller is None:
                    return float(cumulative)
                own = str(root / f"{caller}.py")
                return float(sum(c[3] for (where, _, _), c in callers.items() if where == own))
        return 0.0

    split = {"decode": spent("data/image_set", "to_tensors", caller="task/run")}
    split |= {phase: sum(spent(*at) for at in places) for phase, places in PHASES.items()}
    unseen = [phase for phase, seconds in split.items() if not seconds]
    if unseen:
        raise SystemExit(f"no time was seen in {', '.join(unseen)}: has a function been renamed?")
    split["select"] -= spent("training/pools", "advanced")  # the cut moves up at its end
    whole = spent("task/run", "run_task")
    split["rest"] = whole - sum(split.values())
    return split, to_markdown(result.report, result.gates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--casia", action="store_true", help="a task of CASIA-Face100's shape")
    parser.add_argument("--steps", type=int, help="timed steps (CPU 1, GPU 20), 0 for none")
    parser.add_argument("--images", type=int, help="images a step (CPU 4, GPU 96)")
    parser.add_argument(
        "--per-class", type=int, help="images of a class of --casia (CPU 5, GPU 100)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    parser.add_argument("--card", action="store_true", help="print the task's report too")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = device == "cpu"
    steps = (1 if small else 20) if chosen.steps is None else chosen.steps
    batch = (chosen.images or (4 if small else 96)) // 2
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {chosen.threads} thread"
    print(f"{where}; {steps} steps of {2 * batch} images; torch {torch.__version__}\n")
    print("| backbone | | bare images/s | select / bare | refit / bare |\n|---|---|---|---|---|")
    for title in MODELS if steps else ():
        for name, variant, bare, select, refit in step_ratios(
            title, steps=steps, batch=batch, device=device
        ):
            print(f"| {name} | {variant} | {bare:.1f} | {select:.2f} | {refit:.2f} |", flush=True)
    config = TrainConfig()
    if chosen.casia:
        backbone, images, forget = casia_shapes(per_class=chosen.per_class or (5 if small else 100))
        if small:  # a whole task of this size takes a night on a CPU
            config = replace(
                config, select_steps=2, refit_steps=2, check_every=2, copies=0, replay_per_class=2,
                forget_batch=8, retain_batch=8,
            )  # fmt: skip
    else:
        backbone, images, forget = digits_task()
    split, card = task_split(backbone, images, forget, config=config)
    whole = sum(split.values())
    print(f"\nA task on {images.name} ({len(images)} images, on the CPU): {whole:.1f} CPU s, of it")
    print(", ".join(f"{phase} {seconds / whole:.0%}" for phase, seconds in split.items()))
    if chosen.card:
        print(f"\n{card}")


if __name__ == "__main__":
    main()
