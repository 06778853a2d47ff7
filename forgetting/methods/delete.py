"""DELETE: distillation with the forgotten logits masked (Zhou et al., CVPR 2025).

    L = KL( softmax(mask(z_t)) || softmax(z_s) )  on forget images only

z_t are the logits before the task, and `mask` sets those of the forgotten classes to minus
infinity. So a forgotten class gets the probability 0, and all others keep the ratios that the model
gave them. The method needs no retain image.

The authors' code masks an image's own class only. With several classes, that moves images from one
forgotten class to another. Here the mask covers all classes under erasure. As in the other methods
here, AdamW trains everything but the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.methods.distilled import taught
from forgetting.methods.draws import Draws, retained_classes
from forgetting.methods.finetune import Recipe, Terms, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


def masked(logits: Tensor, *, forgotten: Tensor) -> Tensor:
    """softmax(mask(z)): probabilities (n, K) that are 0 for the forgotten labels (k,).

    Raises:
        TrainingError: All classes are forgotten.
    """
    retained_classes(logits.shape[1], forgotten=forgotten)
    return logits.index_fill(1, forgotten, -torch.inf).softmax(dim=1)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(z)), mean over images; both (n, K). A target of 0 adds 0."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")


@dataclass(frozen=True)
class Delete:
    """`rate` is the peak learning rate."""

    name: ClassVar[str] = "delete"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"rate": 1e-4},
        {"rate": 1e-3},
        {"rate": 3e-3},
    )
    rate: float = 3e-4

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Needs no retain images."""
        watch = Watch(task.data, progress, phase=self.name)
        data = task.data
        check_images(data, retain=False)
        target = masked(taught(task.model, data.forget.x), forgotten=data.forgotten)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f = draws.forget()
            loss = divergence(model(f.x), target[f.rows])
            return Terms(forget=loss, retain=torch.zeros_like(loss))

        return finetune(
            task,
            step,
            recipe=Recipe(self.rate),
            budget=budget,
            generator=generator,
            watch=watch,
            retain=False,
        )
