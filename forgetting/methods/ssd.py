"""SSD: dampen the weights that matter more to what is forgotten (Foster et al., AAAI 2024).

    theta_j <- min(1, lambda I_r,j / I_f,j) theta_j   where   I_f,j > alpha I_r,j

I is the diagonal of the Fisher information: the mean squared gradient of CE over images. It needs
one pass over the images and no training. The authors' code squares gradients of whole batches, in
which the gradients of the samples cancel out. Here they are taken for each sample, as in the paper.

The paper compares I_f with I of the whole training set, in which the forget images are few. In the
replay of a task they are many: with a share p of forget images, I_f > alpha I can't hold once
alpha p >= 1. So I_r here is that of the retain images, the limit for small p. The head is left
alone, as in the other methods here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.methods.draws import label_loss
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.regularised import Tensors, body_of, few, mean_over_samples
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


def importance(model: nn.Module, samples: Samples) -> Tensors:
    """I_j = mean_i (d CE_i / d theta_j)^2 by parameter name, for all weights but the head's.

    Raises:
        TrainingError: It isn't finite.
    """

    def loss(logits: Tensor, i: int) -> Tensor:
        return label_loss(model, logits, samples.y[i : i + 1])

    found = mean_over_samples(model, samples, loss, torch.square)
    if not all(bool(each.isfinite().all()) for each in found.values()):
        raise TrainingError("the importances of the weights are not finite")
    return found


def dampened(
    theta: Tensor, *, forget: Tensor, retain: Tensor, alpha: float, strength: float
) -> Tensor:
    """Weights after dampening. All tensors have the same shape; `strength` is lambda."""
    chosen = forget > alpha * retain
    factor = (strength * retain / forget).clamp(max=1.0)
    return torch.where(chosen, theta * factor, theta)


@dataclass(frozen=True)
class SSD:
    """SSD.

    Attributes:
        alpha: How many times as important a weight must be to the forget images.
        strength: lambda; the smaller, the more a chosen weight is dampened.
        samples: The most images of each side from which the importance is taken.
    """

    name: ClassVar[str] = "ssd"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"alpha": 3.0},
        {"alpha": 2.0, "strength": 0.1},
        {"alpha": 1.0},
        {"alpha": 1.0, "strength": 0.1},
    )
    alpha: float = 10.0
    strength: float = 1.0
    samples: int = 400

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Takes no steps.

        Raises:
            TrainingError: There are no images, or an importance isn't finite.
        """
        watch = Watch(task.data, progress, phase=self.name)
        check_images(task.data)
        forget, retain = (
            importance(task.model, few(each, self.samples, generator=generator))
            for each in (task.data.forget, task.data.retain)
        )
        model = copy.deepcopy(task.model).requires_grad_(False).eval()
        for name, p in body_of(model).items():
            p.copy_(
                dampened(
                    p,
                    forget=forget[name],
                    retain=retain[name],
                    alpha=self.alpha,
                    strength=self.strength,
                )
            )
        seconds = watch.cpu_seconds
        nothing = torch.zeros(())
        watch.after(1, model, steps=1, forget=nothing, retain=nothing)
        return Learned(
            model=model,
            trainable=0,
            stored=differing(model, task.original),
            steps=0,
            cpu_seconds=seconds,
        )


def differing(model: nn.Module, original: nn.Module) -> int:
    """How many numbers of two models of one architecture differ."""
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    return sum(int((a != b).sum()) for a, b in pairs)
