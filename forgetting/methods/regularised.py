"""L2, EWC and MAS: relabelled forget images, and a quadratic pull to the weights of before.

    L = CE(forget, random wrong labels + retain)  +  lambda sum_tj w_tj (theta_j - theta_tj)^2

Each task t *adds* a pull to theta_t, the weights at its start. In L2, w = 1. In EWC, w is the
diagonal of the Fisher information (Kirkpatrick et al., PNAS 2017, there with a factor 1/2). In MAS,
w is the mean absolute gradient of |z|^2 (Aljundi et al., ECCV 2018). The published code of GS-LoRA
takes the last two from gradients of whole batches, in which the gradients of the samples cancel
out. Here they are taken for each sample, as in the papers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.methods.draws import Draws, head_of, label_loss
from forgetting.methods.finetune import Recipe, Step, Terms, answers, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell

Tensors = dict[str, Tensor]
Importance = Callable[[nn.Module, Samples, torch.Generator], Tensors]


@dataclass(frozen=True)
class Anchor:
    """The pulls of all tasks as one: sum_t w_t (theta - theta_t)^2 = w (theta - c)^2 + constant.

    With w = sum_t w_t and c = sum_t w_t theta_t / w, the gradient is exactly that of the sum. It
    takes no more memory with more tasks.
    """

    weight: Tensors
    centre: Tensors

    def penalty(self, model: nn.Module) -> Tensor:
        """sum_j w_j (theta_j - c_j)^2 (scalar)."""
        now = dict(model.named_parameters())
        parts = [
            (weight * (now[name] - self.centre[name]).square()).sum()
            for name, weight in self.weight.items()
        ]
        return torch.stack(parts).sum()


def anchored(before: Anchor | None, weight: Tensors, at: Mapping[str, Tensor]) -> Anchor:
    """Add a pull of strength `weight` to the weights `at` to the pulls of earlier tasks."""
    if before is None:
        return Anchor(weight, {name: at[name].detach().clone() for name in weight})
    total = {name: before.weight[name] + w for name, w in weight.items()}
    centre = {}
    for name, w in weight.items():
        old = before.centre[name]
        share = torch.where(total[name] > 0, w / total[name], torch.zeros_like(w))
        centre[name] = old + share * (at[name].detach() - old)
    return Anchor(total, centre)


def ones(model: nn.Module, samples: Samples, generator: torch.Generator) -> Tensors:
    """L2: w = 1 for every weight."""
    return {name: torch.ones_like(p) for name, p in body_of(model).items()}


def fisher(model: nn.Module, samples: Samples, generator: torch.Generator) -> Tensors:
    """EWC: F_j = mean_i (d log p(y_i | x_i) / d theta_j)^2, with y_i drawn from the model's answer.

    Only the expectation under the model is the Fisher information. With the data's labels it would
    vanish wherever the model fits them.
    """
    with torch.no_grad():
        parts = [model(samples.x[i : i + 256]).softmax(dim=1) for i in range(0, len(samples), 256)]
    chances = torch.cat(parts).to(generator.device)
    if not chances.isfinite().all():
        raise TrainingError("the model's answers to the images kept are not finite")
    y = torch.multinomial(chances, 1, generator=generator)[:, 0].to(samples.y.device)

    def log_likelihood(logits: Tensor, i: int) -> Tensor:
        return -F.cross_entropy(logits, y[i : i + 1])

    return mean_over_samples(model, samples, log_likelihood, torch.square)


def sensitivity(model: nn.Module, samples: Samples, generator: torch.Generator) -> Tensors:
    """MAS: w_j = mean_i |d |z(x_i)|^2 / d theta_j|, where z are the logits."""
    return mean_over_samples(model, samples, lambda logits, i: logits.square().sum(), torch.abs)


def mean_over_samples(
    model: nn.Module,
    samples: Samples,
    scalar: Callable[[Tensor, int], Tensor],
    of: Callable[[Tensor], Tensor],
) -> Tensors:
    """mean_i of(d scalar(z(x_i)) / d theta), one sample at a time."""
    work = copy.deepcopy(model).eval().requires_grad_(False)
    body = {name: p.requires_grad_(True) for name, p in body_of(work).items()}
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in body.items()}
    for i in range(len(samples)):
        value = scalar(work(samples.x[i : i + 1]), i)  # (1, c, h, w) -> (1, K) -> scalar
        gradients = torch.autograd.grad(value, list(body.values()), allow_unused=True)
        for name, gradient in zip(body, gradients, strict=True):
            if gradient is not None:
                sums[name] += of(gradient)
    return {name: total / len(samples) for name, total in sums.items()}


def body_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the head's."""
    head = {id(p) for p in head_of(model).parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in head}


def few(samples: Samples, count: int, *, generator: torch.Generator) -> Samples:
    """At most `count` of the samples, drawn without replacement."""
    order = torch.randperm(len(samples), generator=generator, device=generator.device)
    rows = order[:count].to(samples.y.device)
    return Samples(samples.x[rows], samples.y[rows])


def relabelled(anchor: Anchor, *, strength: float) -> Step:
    """The cross-entropy over both batches together, plus the pull."""

    def step(model: nn.Module, draws: Draws) -> Terms:
        f, r = draws.forget(), draws.retain()
        forget, retain = answers(model, f, r)
        wrong = draws.wrong(len(f), classes=forget.shape[1])
        share = len(f) / (len(f) + len(r))
        kept = (1 - share) * label_loss(model, retain, r.y)
        return Terms(
            forget=share * label_loss(model, forget, wrong),
            retain=kept + strength * anchor.penalty(model),
        )

    return step


def _learn(
    task: Task,
    importance: Importance,
    *,
    strength: float,
    rate: float,
    samples: int,
    budget: Budget,
    generator: torch.Generator,
    watch: Watch,
) -> Learned:
    check_images(task.data)
    drawn = few(task.data.retain, samples, generator=generator)
    weight = importance(task.model, drawn, generator)
    anchor = anchored(task.carried, weight, dict(task.model.named_parameters()))
    return finetune(
        task,
        relabelled(anchor, strength=strength),
        recipe=Recipe(rate),
        budget=budget,
        generator=generator,
        watch=watch,
        carried=anchor,
    )


@dataclass(frozen=True)
class L2:
    """`strength` is lambda, `rate` the peak learning rate."""

    name: ClassVar[str] = "l2"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"strength": 1.0},
        {"strength": 0.01, "rate": 1e-3},
        {"strength": 0.1, "rate": 1e-3},
        {"strength": 1.0, "rate": 1e-3},
    )
    strength: float = 0.1
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
        return _learn(
            task,
            ones,
            strength=self.strength,
            rate=self.rate,
            samples=1,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )


@dataclass(frozen=True)
class EWC:
    """`strength` is lambda, `samples` the most retain images for the Fisher information."""

    name: ClassVar[str] = "ewc"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"strength": 1.0},
        {"strength": 100.0},
        {"strength": 10.0, "rate": 1e-3},
        {"strength": 1000.0, "rate": 1e-3},
    )
    strength: float = 10.0
    rate: float = 1e-4
    samples: int = 200

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`."""
        return _learn(
            task,
            fisher,
            strength=self.strength,
            rate=self.rate,
            samples=self.samples,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )


@dataclass(frozen=True)
class MAS:
    """`strength` is lambda. It is small because |z|^2 is a sum over classes (published: a mean)."""

    name: ClassVar[str] = "mas"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"strength": 1e-4},
        {"strength": 1e-2},
        {"strength": 1e-3, "rate": 1e-3},
        {"strength": 1e-2, "rate": 1e-3},
    )
    strength: float = 1e-3
    rate: float = 1e-4
    samples: int = 200

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`."""
        return _learn(
            task,
            sensitivity,
            strength=self.strength,
            rate=self.rate,
            samples=self.samples,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )
