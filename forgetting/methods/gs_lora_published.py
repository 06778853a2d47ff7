"""`gs_lora_published`: the recipe of the published code as it stands (github bjzhb666/GS-LoRA).

Continual recognition, `engine_cl.py` at a92fb97 with the shipped script's hyper-parameters:

    L = CE(retain) + beta_t ReLU(105 - CE(forget)) + 1e-4 sum_l |g_l|_F,   g_l = (A1, B1, A2, B2)

Rank 8 at scale 1/8. A is Kaiming-uniform, with a = sqrt 5 in the first task and sqrt 50 in later
ones. AdamW at 1e-2 with weight decay 0.05, a cosine over the epochs down to 1e-5, 100 epochs. The
retain loader drives the epoch; the forget loader starts again when it runs out. There are two
forward passes, dropout if the model has any, and CosFace's margin if the head has one. Without a
proximal step or a threshold no group ever becomes zero, so all pairs are stored.

This module is the baseline for every claim, flaws included: do not mend it. One thing is left out:
the published code selects checkpoints by the test images. Here the last weights are taken, as that
code does itself for the next task.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.methods.draws import label_loss
from forgetting.methods.merging import low_rank
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images, finite
from forgetting.models.targets import Group, Pair, find_groups
from forgetting.training.lora import LowRank
from forgetting.training.progress import Tell


class ScaledPair(LowRank):
    """loralib's linear: y = W x + b + (1 / r) B (A x), A Kaiming-uniform."""

    def __init__(
        self, base: nn.Linear, *, rank: int, gain: float, generator: torch.Generator
    ) -> None:
        super().__init__(base, rank=rank, generator=generator)
        nn.init.kaiming_uniform_(self.a, a=gain, generator=generator)
        self.scale = 1 / rank  # lora_alpha is left at 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.scale * ((x @ self.a.T) @ self.b.T)  # (.., in) -> (.., r) -> (.., out)

    def pair(self) -> Pair:
        """The same update at scale 1. It is exact, because 1/8 is a power of two."""
        return self.a.detach().clone(), self.b.detach() * self.scale


def structure_loss(groups: Mapping[Group, tuple[ScaledPair, ScaledPair]]) -> Tensor:
    """L_gs = sum_l sqrt( |A_1|_F^2 + |B_1|_F^2 + |A_2|_F^2 + |B_2|_F^2 ), the plain norm."""
    norms = []
    for pairs in groups.values():
        squares = [part.square().sum() for pair in pairs for part in (pair.a, pair.b)]
        norms.append(torch.stack(squares).sum().sqrt())
    return torch.stack(norms).sum()


def epoch(samples: Samples, *, batch: int, generator: torch.Generator) -> Iterator[Samples]:
    """Every sample once, in a new order. The last batch may be smaller."""
    order = torch.randperm(len(samples), generator=generator, device=generator.device)
    for rows in torch.split(order.to(samples.y.device), batch):
        yield Samples(samples.x[rows], samples.y[rows])


def endless(samples: Samples, *, batch: int, generator: torch.Generator) -> Iterator[Samples]:
    """Epoch after epoch."""
    while True:
        yield from epoch(samples, batch=batch, generator=generator)


@dataclass(frozen=True)
class GSLoRAPublished:
    """The published recipe. It ignores the budget: `epochs` and `batch` fix its steps.

    Attributes:
        betas: Weight of the forget loss in each task. The last one is for all later tasks.
        epochs: Passes over the retain images.
        batch: Batch size of both loaders.
        bound: BND, in nats.
        alpha: Weight of the group norm.
        rate: Peak learning rate.
        floor: Learning rate at the end of the cosine.
        weight_decay: AdamW's weight decay on A and B.
        rank: r. The scale is 1 / r.
    """

    name: ClassVar[str] = "gs_lora_published"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ()
    betas: tuple[float, ...] = (0.2, 0.25)
    epochs: int = 100
    batch: int = 48
    bound: float = 105.0
    alpha: float = 1e-4
    rate: float = 1e-2
    floor: float = 1e-5
    weight_decay: float = 0.05
    rank: int = 8

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`; `budget` is ignored."""
        watch = Watch(task.data, progress, phase=self.name)
        check_images(task.data)
        if self.epochs < 1 or not self.betas:
            raise TrainingError(
                f"expected epochs >= 1 and one beta or more, found {self.epochs} and {self.betas}"
            )
        groups = find_groups(task.model)
        model = copy.deepcopy(task.model).requires_grad_(False)
        gain = math.sqrt(5 if task.number == 1 else 50)
        live = {g: self._attach(model, g, gain=gain, generator=generator) for g in groups}
        model.to(task.data.forget.x.device)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        with torch.random.fork_rng():  # dropout draws from the global generator
            torch.manual_seed(seed)
            steps = self._descend(model, live, task, generator=generator, watch=watch)
        pairs = {
            path: pair.pair()
            for group, both in live.items()
            for path, pair in zip(group.paths, both, strict=True)
        }
        return low_rank(
            task.model,
            groups,
            pairs,
            trainable=sum(a.numel() + b.numel() for a, b in pairs.values()),
            steps=steps,
            cpu_seconds=watch.cpu_seconds,
        )

    def _descend(
        self,
        model: nn.Module,
        live: Mapping[Group, tuple[ScaledPair, ScaledPair]],
        task: Task,
        *,
        generator: torch.Generator,
        watch: Watch,
    ) -> int:
        """All epochs; returns the number of steps."""
        data = task.data
        beta = self.betas[min(task.number, len(self.betas)) - 1]
        moving = [p for both in live.values() for pair in both for p in (pair.a, pair.b)]
        optimizer = torch.optim.AdamW(moving, lr=self.rate, weight_decay=self.weight_decay)
        forget = endless(data.forget, batch=self.batch, generator=generator)
        model.train()  # with dropout, as published
        steps, step = self.epochs * math.ceil(len(data.retain) / self.batch), 0
        for number in range(self.epochs):
            rate = self._rate(number)
            optimizer.param_groups[0]["lr"] = rate
            for r in epoch(data.retain, batch=self.batch, generator=generator):
                step += 1
                f = next(forget)
                kept = label_loss(model, model(r.x), r.y)
                away = beta * F.relu(self.bound - label_loss(model, model(f.x), f.y))
                rest = kept + self.alpha * structure_loss(live)
                loss = finite(step, forget=away, retain=rest, rate=rate)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                watch.after(
                    step,
                    model,
                    steps=steps,
                    forget=away,
                    retain=rest,
                    groups=lambda: len(live),
                )
        return step

    def _rate(self, number: int) -> float:
        """The cosine by whole epochs."""
        done = (1 + math.cos(math.pi * number / self.epochs)) / 2
        return self.floor + (self.rate - self.floor) * done

    def _attach(
        self, model: nn.Module, group: Group, *, gain: float, generator: torch.Generator
    ) -> tuple[ScaledPair, ScaledPair]:
        made = []
        for path in group.paths:
            base = model.get_submodule(path)
            if not isinstance(base, nn.Linear):
                raise TrainingError(f"{path} is a {type(base).__name__}, expected a linear")
            pair = ScaledPair(base, rank=self.rank, gain=gain, generator=generator)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, pair)
            made.append(pair)
        return made[0], made[1]
