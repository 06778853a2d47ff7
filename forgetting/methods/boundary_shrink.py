"""Boundary Shrink: give forget images the label just across the boundary (Chen et al., CVPR 2023).

    x' = x + epsilon sign( d CE(z_0(x), y) / d x ),   y' = arg max z_0(x')
    L = CE(forget, y')

z_0 are the logits before the task. The method needs no retain image. In the authors' code y' may be
the image's own class, where the step doesn't cross the boundary, and training then strengthens what
it should remove. Here the arg max is over the retained classes.
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
from forgetting.methods.distilled import taught
from forgetting.methods.draws import Draws, label_loss, retained_classes
from forgetting.methods.finetune import Recipe, Terms, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


def fast_gradient_sign(
    model: nn.Module, samples: Samples, *, bound: float, batch: int = 256
) -> Tensor:
    """One step up the loss, of the same size in each pixel (Goodfellow et al., ICLR 2015).

    Args:
        model: The model that is attacked.
        samples: Images (n, c, h, w) with their labels.
        bound: epsilon, in standard deviations of the images' pixels.
        batch: Images at a time.

    Returns:
        Images (n, c, h, w) within the range of the given ones.
    """
    work = copy.deepcopy(model).eval().requires_grad_(False)
    size = bound * float(samples.x.std())
    low, high = float(samples.x.min()), float(samples.x.max())
    parts = []
    for i in range(0, len(samples), batch):
        x = samples.x[i : i + batch].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(label_loss(work, work(x), samples.y[i : i + batch]), x)
        parts.append((x.detach() + size * gradient.sign()).clamp(low, high))
    return torch.cat(parts)


def nearest_labels(
    model: nn.Module, samples: Samples, *, bound: float, forgotten: Tensor
) -> Tensor:
    """y' of each image (n,): the retained class that wins after the step.

    Raises:
        TrainingError: All classes are forgotten, or the model's answers aren't finite.
    """
    logits = taught(model, fast_gradient_sign(model, samples, bound=bound))
    if not bool(logits.isfinite().all()):
        raise TrainingError("the model's answers to the images to forget are not finite")
    kept = retained_classes(logits.shape[1], forgotten=forgotten)
    return kept[logits[:, kept].argmax(dim=1)]


@dataclass(frozen=True)
class BoundaryShrink:
    """Boundary Shrink.

    Attributes:
        bound: epsilon, in standard deviations of the images' pixels. The authors' 0.1 of the range
            0..1 is 0.4 of CIFAR-10's standard deviation.
        rate: Peak learning rate.
    """

    name: ClassVar[str] = "boundary_shrink"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"rate": 3e-5},
        {"rate": 3e-4},
        {"rate": 1e-3},
        {"rate": 3e-4, "bound": 0.1},
    )
    bound: float = 0.4
    rate: float = 1e-4

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
        labels = nearest_labels(task.model, data.forget, bound=self.bound, forgotten=data.forgotten)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f = draws.forget()
            loss = label_loss(model, model(f.x), labels[f.rows])
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
