"""The row "Retrain" of the tables: a network with fresh weights, within the same budget.

It trains all weights and the head by cross-entropy on retain images only, and uses nothing of
earlier tasks. The budget is a few hundred steps, so the model stays weak. Leaks are not compared
with it, but with a model that was trained to the end without the classes
(`forgetting.bench.backbones`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from forgetting.errors import TrainingError
from forgetting.methods.draws import Draws, label_loss
from forgetting.methods.finetune import Recipe, Terms, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch
from forgetting.training.progress import Tell


def reset(model: nn.Module, *, generator: torch.Generator) -> nn.Module:
    """A copy with fresh weights, initialised by timm.

    Raises:
        TrainingError: The model has no `init_weights`.
    """
    fresh: Any = copy.deepcopy(model)
    if not callable(getattr(fresh, "init_weights", None)):
        raise TrainingError(
            f"{type(model).__name__} can't be trained afresh: expected timm's `init_weights`"
        )
    device = generator.device
    seed = int(torch.randint(2**31, (1,), generator=generator, device=device))
    with torch.random.fork_rng():  # timm draws from the global generator
        torch.manual_seed(seed)
        for module in fresh.modules():
            if callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()
        fresh.init_weights()
    network: nn.Module = fresh
    return network


@dataclass(frozen=True)
class Retrain:
    """`rate` is the peak learning rate. It is reached after the share `warmup` of the steps."""

    name: ClassVar[str] = "retrain"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ({"rate": 1e-3}, {"rate": 3e-3})
    rate: float = 3e-4
    warmup: float = 0.05

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`."""
        watch = Watch(task.data, progress, phase=self.name)

        def step(model: nn.Module, draws: Draws) -> Terms:
            r = draws.retain()
            kept = label_loss(model, model(r.x), r.y)
            return Terms(forget=torch.zeros_like(kept), retain=kept)

        return finetune(
            task,
            step,
            recipe=Recipe(self.rate, warmup=self.warmup),
            budget=budget,
            generator=generator,
            watch=watch,
            start=reset(task.model, generator=generator),
            trained=lambda name: True,
        )
