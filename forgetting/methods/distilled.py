"""LwF, DER, DER++ and FDR: relabelled forget images, and the bare backbone as a teacher.

    L = CE(forget, random wrong labels)  +  R(z_s, z_t)  on retain images,   z_t: the teacher's

    LwF    R = w KD_T(z_s, z_t) + v CE            Li & Hoiem, ECCV 2016, T = 2
    DER    R = w mean |z_s - z_t|^2               Buzzega et al., NeurIPS 2020, eq. 5
    DER++  R = w mean |z_s - z_t|^2 + v CE        ibid., eq. 6
    FDR    R = w mean_i |p_s - p_t|_2             Benjamin et al., ICLR 2019, p = softmax(z)

The published code of GS-LoRA differs from these papers; this module follows the papers. (In that
code LwF has no distillation, because the term is NaN and is set to 0; DER compares embeddings; FDR
compares logits.) The original DER++ draws another batch for its second term. Here both terms use
one batch, with the same expectation and half the images. The mean in DER is over images and
classes, as in its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.measure.accuracy import predict
from forgetting.methods.draws import Draws, label_loss
from forgetting.methods.finetune import Recipe, Terms, answers, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell

Distance = Callable[[Tensor, Tensor], Tensor]
"""(student logits (n, K), teacher logits (n, K)) -> scalar."""

Grid = tuple[Mapping[str, float], ...]


def taught(model: nn.Module, x: Tensor) -> Tensor:
    """A teacher's logits (n, K). The images never change, so they are computed only once."""
    return predict(model, x).clone()  # a clone may take part in autograd


def distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KD = T^2 KL( softmax(z_t / T) || softmax(z_s / T) ), mean over images (Hinton et al., 2015).

    Args:
        student: Logits (n, K).
        teacher: Logits (n, K).
        temperature: T.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    apart = F.kl_div(found, target, reduction="batchmean", log_target=True)
    return apart * temperature**2


def softmax_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """FDR: mean_i |softmax(z_s) - softmax(z_t)|_2. If both are equal, its gradient is 0."""
    apart: Tensor = torch.linalg.vector_norm(student.softmax(1) - teacher.softmax(1), dim=1)
    return apart.mean()


def _learn(
    task: Task,
    distance: Distance,
    *,
    weight: float,
    labels: float,
    rate: float,
    budget: Budget,
    generator: torch.Generator,
    watch: Watch,
) -> Learned:
    check_images(task.data)
    teacher = taught(task.original, task.data.retain.x)

    def step(model: nn.Module, draws: Draws) -> Terms:
        f, r = draws.forget(), draws.retain()
        forget, retain = answers(model, f, r)
        wrong = draws.wrong(len(f), classes=forget.shape[1])
        kept = weight * distance(retain, teacher[r.rows])
        if labels > 0:
            kept = kept + labels * label_loss(model, retain, r.y)
        return Terms(forget=label_loss(model, forget, wrong), retain=kept)

    return finetune(
        task, step, recipe=Recipe(rate), budget=budget, generator=generator, watch=watch
    )


@dataclass(frozen=True)
class LwF:
    """`weight` is that of KD, `temperature` is T, `labels` is the weight of CE on retain images."""

    name: ClassVar[str] = "lwf"
    grid: ClassVar[Grid] = (
        {"labels": 10.0},
        {"weight": 5.0},
        {"weight": 5.0, "rate": 1e-3},
        {"rate": 1e-3},
    )
    weight: float = 0.5
    temperature: float = 2.0
    labels: float = 2.0
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

        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            return distillation(student, teacher, temperature=self.temperature)

        return _learn(
            task,
            distance,
            weight=self.weight,
            labels=self.labels,
            rate=self.rate,
            budget=budget,
            generator=generator,
            watch=watch,
        )


@dataclass(frozen=True)
class DER:
    """`weight` is that of the squared distance of the logits."""

    name: ClassVar[str] = "der"
    grid: ClassVar[Grid] = (
        {"weight": 0.1},
        {"weight": 2.0},
        {"rate": 1e-4},
        {"weight": 2.0, "rate": 1e-4},
    )
    weight: float = 0.5
    rate: float = 1e-3

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
            F.mse_loss,
            weight=self.weight,
            labels=0.0,
            rate=self.rate,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )


@dataclass(frozen=True)
class DERPlusPlus:
    """`weight` is that of the squared distance, `labels` is that of CE on retain images."""

    name: ClassVar[str] = "der++"
    grid: ClassVar[Grid] = (
        {"weight": 0.1},
        {"weight": 2.0, "labels": 1.0},
        {"rate": 1e-4},
        {"weight": 2.0, "labels": 1.0, "rate": 1e-4},
    )
    weight: float = 0.5
    labels: float = 0.5
    rate: float = 1e-3

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
            F.mse_loss,
            weight=self.weight,
            labels=self.labels,
            rate=self.rate,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )


@dataclass(frozen=True)
class FDR:
    """`weight` is that of the distance. The published weight, 50, was meant for logits."""

    name: ClassVar[str] = "fdr"
    grid: ClassVar[Grid] = (
        {"weight": 2.0},
        {"weight": 50.0},
        {"rate": 1e-4},
        {"weight": 50.0, "rate": 1e-4},
    )
    weight: float = 10.0
    rate: float = 1e-3

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
            softmax_distance,
            weight=self.weight,
            labels=0.0,
            rate=self.rate,
            budget=budget,
            generator=generator,
            watch=Watch(task.data, progress, phase=self.name),
        )
