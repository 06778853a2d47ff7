"""The shared loop of the methods that train the weights themselves.

As in the tables of GS-LoRA (CVPR 2024, T-PAMI): everything but the head is trained by AdamW with
weight decay 0.05 and a cosine, from the weights that the task before left behind. Each method is
then only its objective. What is unlike the published code, for all methods alike: equally many
optimizer steps (there, each loader has its own count), no dropout, images that are not augmented.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.errors import TrainingError
from forgetting.methods.draws import Drawn, Draws, head_of
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images, finite


@dataclass(frozen=True)
class Terms:
    """The loss of one step: what makes it forget, and all else (scalars, minimised as a sum)."""

    forget: Tensor
    retain: Tensor


Step = Callable[[nn.Module, Draws], Terms]


@dataclass(frozen=True)
class Recipe:
    """How the weights move.

    Attributes:
        rate: Peak learning rate.
        weight_decay: Of AdamW.
        floor: Learning rate at the end of the cosine.
        warmup: Share of the steps in which the rate rises linearly.
    """

    rate: float
    weight_decay: float = 0.05
    floor: float = 1e-5
    warmup: float = 0.0

    def at(self, step: int, *, steps: int) -> float:
        """The rate of step 0 .. steps - 1."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return self.rate * (step + 1) / (rising + 1)
        low = min(self.floor, self.rate)
        done = (step - rising) / max(1, steps - rising)
        return low + (self.rate - low) * (1 + math.cos(math.pi * done)) / 2


def finetune(
    task: Task,
    step: Step,
    *,
    recipe: Recipe,
    budget: Budget,
    generator: torch.Generator,
    watch: Watch,
    start: nn.Module | None = None,
    trained: Callable[[str], bool] | None = None,
    beside: Sequence[nn.Parameter] = (),
    carried: Any = None,
) -> Learned:
    """Take `budget.steps` optimizer steps.

    Args:
        task: The images; its model is copied.
        step: The loss of one step.
        recipe: Rates.
        budget: Steps and batch size.
        generator: Source of all draws.
        watch: Was started at the beginning of `learn`.
        start: Weights to start from instead of the task's model; changed in place.
        trained: Which parameters move, by name; all but the head's where not given.
        beside: Parameters of a helper network, moved by an optimizer of their own.
        carried: See `Learned`.

    Raises:
        TrainingError: No images, no steps, nothing to train, or a loss that is NaN.
    """
    check_images(task.data)
    if budget.steps < 1 or budget.batch < 1:
        raise TrainingError(f"a budget of at least 1 step and 1 image is needed, not {budget}")
    model = copy.deepcopy(task.model) if start is None else start
    moving = _trained(model, trained)
    optimizers = [
        torch.optim.AdamW(part, lr=recipe.rate, weight_decay=recipe.weight_decay)
        for part in (moving, list(beside))
        if part
    ]
    draws = Draws(task.data, budget, generator=generator)
    for i in range(budget.steps):
        rate = recipe.at(i, steps=budget.steps)
        terms = step(model, draws)
        loss = finite(i + 1, forget=terms.forget, retain=terms.retain, rate=rate)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        watch.after(i + 1, model, steps=budget.steps, forget=terms.forget, retain=terms.retain)
    model.requires_grad_(False)
    count = sum(p.numel() for p in moving)
    return Learned(
        model=model.eval(),
        trainable=count,
        stored=count,
        steps=budget.steps,
        cpu_seconds=watch.cpu_seconds,
        carried=carried,
    )


def answers(model: nn.Module, forget: Drawn, retain: Drawn) -> tuple[Tensor, Tensor]:
    """Logits of forget images (f, K) and retain images (r, K), from one forward pass."""
    logits: Tensor = model(torch.cat([forget.x, retain.x]))  # (f + r, c, h, w) -> (f + r, K)
    return logits[: len(forget)], logits[len(forget) :]


def _trained(model: nn.Module, trained: Callable[[str], bool] | None) -> list[nn.Parameter]:
    """Mark the parameters that move, and only those, as requiring gradients."""
    head = {id(p) for p in head_of(model).parameters()}
    model.eval().requires_grad_(False)  # eval: dropout would only add noise
    moving = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in head if trained is None else trained(name):
            parameter.requires_grad_(True)
            moving.append(parameter)
    if not moving:
        raise TrainingError(f"{type(model).__name__} has no parameter that the method could train")
    return moving
