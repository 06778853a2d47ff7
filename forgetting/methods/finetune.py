"""The shared loop of the methods that train the weights themselves.

It follows the tables of GS-LoRA (CVPR 2024, T-PAMI): AdamW with weight decay 0.05 and a cosine
trains everything but the head, from the weights that the last task left. So each method is only an
objective. It differs from the published code in three things, for all methods alike: every method
takes the same number of optimizer steps (there each loader has its own count), there is no dropout,
and images aren't augmented.
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
    """The two parts of a step's loss: what makes it forget, and all the rest. Both are scalars."""

    forget: Tensor
    retain: Tensor


Step = Callable[[nn.Module, Draws], Terms]


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimizer.

    Attributes:
        rate: Peak learning rate.
        weight_decay: AdamW's weight decay.
        floor: Learning rate at the end of the cosine.
        warmup: Share of the steps in which the rate rises linearly.
    """

    rate: float
    weight_decay: float = 0.05
    floor: float = 1e-5
    warmup: float = 0.0

    def at(self, step: int, *, steps: int) -> float:
        """The learning rate of a step in 0 .. steps - 1."""
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
    after: Callable[[nn.Module], None] | None = None,
    retain: bool = True,
    carried: Any = None,
) -> Learned:
    """Take `budget.steps` optimizer steps.

    Args:
        task: The task. Its model is copied.
        step: Computes the loss of one step.
        recipe: Settings of the optimizer.
        budget: Steps and batch size.
        generator: Source of all draws.
        watch: Started at the beginning of `learn`.
        start: Model to start from instead of the task's. It is changed in place.
        trained: Tells by name which parameters are trained. Without it, all but the head's.
        beside: Parameters of a helper network. They have an optimizer of their own.
        after: Called with the model after each optimizer step; may change weights.
        retain: Whether the method needs retain images.
        carried: See `Learned`.

    Raises:
        TrainingError: There are no images, no steps or nothing to train, or the loss is NaN.
    """
    check_images(task.data, retain=retain)
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
        if after is not None:
            with torch.no_grad():
                after(model)
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
    """Let only the parameters that are trained require gradients."""
    head = {id(p) for p in head_of(model).parameters()}
    model.eval().requires_grad_(False)  # in eval mode, as dropout would only add noise
    moving = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in head if trained is None else trained(name):
            parameter.requires_grad_(True)
            moving.append(parameter)
    if not moving:
        raise TrainingError(f"{type(model).__name__} has no parameter that the method could train")
    return moving
