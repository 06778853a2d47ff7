"""SCRUB: disobey the teacher on forget images, obey it on the rest (Kurmanji et al., NeurIPS 2023).

    max step   L = -KD_T(z_s, z_t)                     on forget images
    min step   L = alpha KD_T(z_s, z_t) + gamma CE     on retain images

A round is a pass of max steps over the forget images, then a pass of min steps over the retain
images. Rounds fill the first part of the budget. The rest has min steps only: the max steps end
early, as in the paper. Steps of both kinds count towards the budget. The weights alpha and gamma
are those in the code that GS-LoRA published.

SCRUB-S adds to every step a loss that pulls the weights to smoothed ones,
p sum_l |theta_l - s_l|_F. After each pass of min steps, s <- 0.9 s + 0.1 theta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from forgetting.methods.distilled import distillation, taught
from forgetting.methods.draws import Draws, label_loss
from forgetting.methods.finetune import Recipe, Step, Terms, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


def schedule(forget: int, retain: int, *, budget: Budget, share: float) -> Iterator[str]:
    """The kinds of step, `max` or `min`, without end. `end` follows each pass of min steps.

    Args:
        forget: Number of forget images.
        retain: Number of retain images.
        budget: Steps and batch size.
        share: Share of the steps that rounds fill, 0..1. At least one pass of max steps is taken.
    """
    up, down = (max(1, -(-n // budget.batch)) for n in (forget, retain))
    taken = 0
    while True:
        if taken == 0 or taken < share * budget.steps:
            yield from ["max"] * up
            taken += up
        yield from ["min"] * down
        taken += down
        yield "end"


class Smoothed:
    """s, the smoothed weights. They start at the weights of the first call."""

    def __init__(self, *, decay: float) -> None:
        self._decay = decay
        self._at: list[Tensor] = []

    def distance(self, model: nn.Module) -> Tensor:
        """sum_l |theta_l - s_l|_F over the trained tensors. At s its gradient is 0."""
        now = self._trained(model)
        apart = [torch.linalg.vector_norm(p - s) for p, s in zip(now, self._at, strict=True)]
        return torch.stack(apart).sum()

    def follow(self, model: nn.Module) -> None:
        """s <- decay s + (1 - decay) theta."""
        with torch.no_grad():
            for p, s in zip(self._trained(model), self._at, strict=True):
                s.lerp_(p, 1 - self._decay)

    def _trained(self, model: nn.Module) -> list[nn.Parameter]:
        now = [p for p in model.parameters() if p.requires_grad]
        if not self._at:
            self._at = [p.detach().clone() for p in now]
        return now


def scrubbing(
    task: Task,
    *,
    budget: Budget,
    share: float,
    temperature: float,
    alpha: float,
    gamma: float,
    pull: float,
    decay: float,
) -> Step:
    """The objective. See the module's docstring."""
    data = task.data
    check_images(data)
    on_forget = taught(task.original, data.forget.x)
    on_retain = taught(task.original, data.retain.x)
    kinds = schedule(len(data.forget), len(data.retain), budget=budget, share=share)
    smoothed = Smoothed(decay=decay)

    def step(model: nn.Module, draws: Draws) -> Terms:
        kind = next(kinds)
        if kind == "end":
            if pull > 0:
                smoothed.follow(model)
            kind = next(kinds)
        nothing = torch.zeros((), device=data.forget.x.device)
        near = pull * smoothed.distance(model) if pull > 0 else nothing
        if kind == "max":
            f = draws.forget()
            away = distillation(model(f.x), on_forget[f.rows], temperature=temperature)
            return Terms(forget=-away, retain=near)
        r = draws.retain()
        logits = model(r.x)
        obey = distillation(logits, on_retain[r.rows], temperature=temperature)
        kept = alpha * obey + gamma * label_loss(model, logits, r.y)
        return Terms(forget=nothing, retain=kept + near)

    return step


@dataclass(frozen=True)
class Scrub:
    """Weights as in the equations. `max_share` is the share of steps that rounds fill."""

    name: ClassVar[str] = "scrub"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"alpha": 0.5, "rate": 3e-4},
        {"alpha": 0.5, "rate": 1e-3},
        {"alpha": 0.5, "rate": 1e-3, "max_share": 0.8},
        {"gamma": 2.0, "rate": 1e-3},
    )
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 2.0
    max_share: float = 0.5
    rate: float = 1e-4

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
        step = scrubbing(
            task,
            budget=budget,
            share=self.max_share,
            temperature=self.temperature,
            alpha=self.alpha,
            gamma=self.gamma,
            pull=0.0,
            decay=0.9,
        )
        recipe = Recipe(self.rate, weight_decay=5e-4)
        return finetune(task, step, recipe=recipe, budget=budget, generator=generator, watch=watch)


@dataclass(frozen=True)
class ScrubS:
    """As `Scrub`. `pull` is p; `decay` is the share of the smoothed weights that stays."""

    name: ClassVar[str] = "scrub-s"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"max_share": 0.8, "rate": 3e-4},
        {"alpha": 0.5, "rate": 1e-3},
        {"max_share": 0.8, "rate": 1e-3},
        {"alpha": 0.5, "rate": 1e-3, "max_share": 0.8},
    )
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 2.0
    max_share: float = 0.5
    pull: float = 0.1
    decay: float = 0.9
    rate: float = 1e-4

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
        step = scrubbing(
            task,
            budget=budget,
            share=self.max_share,
            temperature=self.temperature,
            alpha=self.alpha,
            gamma=self.gamma,
            pull=self.pull,
            decay=self.decay,
        )
        recipe = Recipe(self.rate, weight_decay=5e-4)
        return finetune(task, step, recipe=recipe, budget=budget, generator=generator, watch=watch)
