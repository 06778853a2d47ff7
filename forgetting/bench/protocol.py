"""One cell: take a method through all tasks of a setting, and measure each result.

The rows `backbone` (nothing forgotten) and `retrained` (never saw the classes) aren't methods, but
the same code measures them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from forgetting.bench.cell import TaskFigures
from forgetting.bench.figures import Measured, measure_task
from forgetting.bench.material import Material, forget_data
from forgetting.bench.partial import Partial, read_partial, write_partial
from forgetting.errors import ForgettingError
from forgetting.methods.protocol import Budget, Learned, Method, Task
from forgetting.training.progress import Progress

BACKBONE, RETRAINED = "backbone", "retrained"
ROWS = (BACKBONE, RETRAINED)
Attacks = Literal["all", "last", "none"]


@dataclass(frozen=True)
class Look:
    """The progress of a cell: `step` of `steps` in task `number` of `tasks`."""

    number: int
    tasks: int
    phase: str
    step: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """Figures by task, answers by test image, and the reason if the sequence ended early."""

    tasks: tuple[TaskFigures, ...]
    samples: tuple[dict[str, Any], ...]
    failed: str | None


def run_sequence(
    method: Method | str,
    material: Material,
    *,
    budget: Budget,
    attacks: Attacks,
    progress: Callable[[Look], None] | None = None,
    partial: Path | None = None,
) -> Outcome:
    """Run every task, each on top of the last. With `partial`, go on where a stopped run ended.

    If a method breaks down (a NaN loss, broken embeddings), the sequence ends with what was
    measured so far. That is a result too, and is in the table.

    Args:
        method: A method, or one of `ROWS`.
        material: The material of the setting and seed.
        budget: Budget of each task.
        attacks: After which tasks the attacks are run.
        progress: Called whenever the method looks at its validation images.
        partial: The file that keeps the state after each task.
    """
    kept = read_partial(partial) if partial is not None else None
    if kept is None:
        kept = Partial((), (), Measured(material.backbone.model, material.bare), None)
    figures, samples = list(kept.figures), list(kept.samples)
    previous, carried = kept.previous, kept.carried
    count = len(material.tasks)
    for number in range(figures[-1].number + 1 if figures else 1, count + 1):
        _tell(progress, Look(number, count, "images", 0, budget.steps))
        try:
            if isinstance(method, str):
                learned = _row(method, material, number)
            else:
                learned = method.learn(
                    Task(
                        original=material.backbone.model,
                        model=previous.model,
                        data=forget_data(material, number),
                        number=number,
                        carried=carried,
                    ),
                    budget=budget,
                    generator=torch.Generator().manual_seed(_seed(material, number)),
                    progress=_telling(progress, number, count),
                )
            if learned is None:
                continue
            _tell(progress, Look(number, count, "measure", budget.steps, budget.steps))
            attacked = attacks == "all" or (attacks == "last" and number == count)
            measured, answers, after = measure_task(
                material, number, previous=previous, learned=learned, attacked=attacked
            )
        except ForgettingError as error:
            return Outcome(tuple(figures), tuple(samples), f"task {number}: {error}")
        figures.append(measured)
        samples.append(answers)
        previous, carried = after, learned.carried
        if partial is not None and number < count and not isinstance(method, str):
            write_partial(partial, Partial(tuple(figures), tuple(samples), previous, carried))
    return Outcome(tuple(figures), tuple(samples), None)


def _seed(material: Material, number: int) -> int:
    """Seed of the method's own randomness. Another generator draws the images."""
    return 1_000_000 + 1000 * material.seed + number


def _row(name: str, material: Material, number: int) -> Learned | None:
    """The model of a row that isn't a method; None if there is no reference for this task."""
    if name == BACKBONE:
        return Learned(material.backbone.model, trainable=0, stored=0, steps=0, cpu_seconds=0.0)
    if number not in material.references:
        return None
    reference, facts = material.references[number]
    size = sum(p.numel() for p in reference.model.parameters())
    return Learned(
        reference.model,
        trainable=size,
        stored=size,
        steps=facts.steps,
        cpu_seconds=facts.cpu_seconds,
    )


def _telling(
    progress: Callable[[Look], None] | None, number: int, count: int
) -> Callable[[Progress], None] | None:
    if progress is None:
        return None
    told = time.monotonic() - 1

    def tell(look: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= 0.25:
            told = time.monotonic()
            progress(Look(number, count, look.phase, look.step, look.steps))

    return tell


def _tell(progress: Callable[[Look], None] | None, look: Look) -> None:
    if progress is not None:
        progress(look)
