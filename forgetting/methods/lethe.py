"""`lethe`: our method, as the forget command trains it (`forgetting.training.sparse_lora`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from forgetting.methods.merging import low_rank
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.models.targets import Grouping, Targets, find_groups
from forgetting.training.config import TrainConfig
from forgetting.training.progress import Tell
from forgetting.training.sparse_lora import train


@dataclass(frozen=True)
class Lethe:
    """Its recipe fixes its steps, so it ignores the budget.

    Attributes:
        config: The recipe.
        targets: The linears that may change (`find_groups`). What is served changes FFNs.
        grouping: What is kept or dropped together. What is served drops whole blocks.
    """

    config: TrainConfig = field(default_factory=TrainConfig)
    targets: Targets = "ffn"
    grouping: Grouping = "block"
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
        """See `forgetting.methods.protocol.Method.learn`."""
        began = time.process_time()
        groups = find_groups(task.model, targets=self.targets, grouping=self.grouping)
        result = train(
            task.model,
            task.data,
            original=task.original,
            config=self.config,
            generator=generator,
            groups=groups,
            progress=progress,
        )
        return low_rank(
            task.model,
            groups,
            result.pairs,
            trainable=result.trainable,
            steps=result.steps,
            cpu_seconds=time.process_time() - began,
        )
