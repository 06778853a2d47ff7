"""`lethe`: GS-LoRA++'s successor, as the forget command trains it (`forgetting.train`)."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from forgetting.method import Budget, Learned, Task, Tell
from forgetting.targets import find_groups
from forgetting.train import TrainConfig, train


@dataclass(frozen=True)
class Lethe:
    """Its recipe fixes its own steps; the budget isn't used."""

    config: TrainConfig = field(default_factory=TrainConfig)
    name: ClassVar[str] = "lethe"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ()

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """As `forgetting.method.Method.learn`."""
        began = time.process_time()
        result = train(
            task.model, task.data, config=self.config, generator=generator, progress=progress
        )
        model = copy.deepcopy(task.model)
        with torch.no_grad():
            for path, (a, b) in result.pairs.items():
                weight = model.get_submodule(path).weight
                weight.copy_(weight.double() + b.double() @ a.double())  # type: ignore[operator]
        groups = find_groups(task.model)
        rank = next(iter(result.pairs.values()))[0].shape[0]
        linears: list[Any] = [model.get_submodule(path) for g in groups for path in g.paths]
        return Learned(
            model=model.eval().requires_grad_(False),
            trainable=sum(rank * sum(linear.weight.shape) for linear in linears),
            stored=sum(a.numel() + b.numel() for a, b in result.pairs.values()),
            steps=result.steps,
            cpu_seconds=time.process_time() - began,
            groups_kept=result.groups_kept,
            groups_total=result.groups_total,
            pairs=result.pairs,
        )
