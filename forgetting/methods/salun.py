"""SalUn: random labels, learned only by the weights that matter to them (Fan et al., ICLR 2024).

    m = 1[ |d L_f / d theta| >= gamma ]  at the weights of before,  L_f = -CE(forget)
    L = CE(forget, random wrong labels) + alpha CE(retain),  theta = theta_0 + m * change

gamma is the value that a share of the weights (in the paper a half) lies above. The gradient is
that of the mean over all forget images. In the authors' code an optimizer step follows each batch
while gradients are summed, so the mask belongs to no one set of weights; that isn't copied here.
AdamW would also move weights whose gradient is masked, by its weight decay. So the other weights
are set back after each step, and stay exactly as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.methods.draws import Draws, label_loss
from forgetting.methods.finetune import Recipe, Terms, answers, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.regularised import Tensors, body_of
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


def mean_gradient(model: nn.Module, samples: Samples, *, batch: int = 64) -> Tensors:
    """d CE / d theta by parameter name, for all weights but the head's.

    CE is the mean over the samples.

    Raises:
        TrainingError: It isn't finite.
    """
    work = copy.deepcopy(model).eval().requires_grad_(False)
    body = {name: p.requires_grad_(True) for name, p in body_of(work).items()}
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in body.items()}
    for i in range(0, len(samples), batch):
        x, y = samples.x[i : i + batch], samples.y[i : i + batch]
        loss = label_loss(work, work(x), y) * len(y) / len(samples)
        gradients = torch.autograd.grad(loss, list(body.values()), allow_unused=True)
        for name, gradient in zip(body, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient
    if not all(bool(each.isfinite().all()) for each in sums.values()):
        raise TrainingError("the gradients of the images are not finite")
    return sums


def strongest(values: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """The mask of the largest `share` (0..1) of all absolute values together, at least one."""
    flat = torch.cat([each.abs().flatten() for each in values.values()])
    count = max(1, round(share * len(flat)))
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count).indices] = True
    parts = torch.split(mask, [each.numel() for each in values.values()])
    return {
        name: part.view_as(each) for (name, each), part in zip(values.items(), parts, strict=True)
    }


def frozen_outside(mask: Mapping[str, Tensor], model: nn.Module) -> Callable[[nn.Module], None]:
    """Makes a function that sets all weights outside the mask back to those of `model`."""
    before = {name: p.detach().clone() for name, p in body_of(model).items()}

    def restore(trained: nn.Module) -> None:
        for name, p in body_of(trained).items():
            p.copy_(torch.where(mask[name], p, before[name]))

    return restore


@dataclass(frozen=True)
class SalUn:
    """SalUn.

    Attributes:
        share: Share of the weights (0..1) that may change.
        alpha: Weight of the cross-entropy on retain images.
        rate: Peak learning rate.
    """

    name: ClassVar[str] = "salun"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"rate": 1e-3},
        {"rate": 3e-3},
        {"rate": 1e-3, "share": 0.1},
        {"rate": 1e-3, "alpha": 3.0},
    )
    share: float = 0.5
    alpha: float = 1.0
    rate: float = 3e-4

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
        check_images(task.data)
        mask = strongest(mean_gradient(task.model, task.data.forget), share=self.share)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f, r = draws.forget(), draws.retain()
            forget, retain = answers(model, f, r)
            wrong = draws.wrong(len(f), classes=forget.shape[1])
            return Terms(
                forget=label_loss(model, forget, wrong),
                retain=self.alpha * label_loss(model, retain, r.y),
            )

        learned = finetune(
            task,
            step,
            recipe=Recipe(self.rate),
            budget=budget,
            generator=generator,
            watch=watch,
            after=frozen_outside(mask, task.model),
        )
        # What may differ from the backbone is the union of all tasks' masks.
        union = mask
        if task.carried is not None:
            union = {name: each | task.carried[name] for name, each in mask.items()}
        return replace(
            learned,
            trainable=_count(mask),
            stored=_count(union),
            carried=union,
        )


def _count(mask: Mapping[str, Tensor]) -> int:
    return sum(int(each.sum()) for each in mask.values())
