"""The relearn curve: how many steps of fine-tuning bring a forgotten class back.

The attacker holds the model, so he may train all weights, including the head. He takes Adam, a few
images of each forgotten class and a replay of the others, with true labels. A class is forgotten if
it takes as many steps as a class that the model never saw. The ratio of the two is the anamnesis
index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.attacks.head import bare_head, margin_logits, revived, with_head
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.accuracy import share_right
from forgetting.measure.features import draw_per_class


@dataclass(frozen=True)
class RelearnConfig:
    """How the attacker fine-tunes.

    Attributes:
        shots: Images of each forgotten class.
        batch: Forget images in a step, and as many retain images.
        rate: Adam's rate for all weights except the head's.
        head_rate: Adam's rate for the head. Its forgotten rows may have to start from nothing.
        looks: Steps after which the test accuracy is measured. The last one is the most steps.
        share: The class counts as relearnt at this share of the accuracy before forgetting.
    """

    shots: int = 5
    batch: int = 16
    rate: float = 5e-4
    head_rate: float = 1e-2
    looks: tuple[int, ...] = (0, 1, 2, 5, 10, 15, 20, 30, 40, 60)
    share: float = 0.9


@dataclass(frozen=True)
class RelearnCurve:
    """Steps and plain Acc_f at each look, up to the first look that reaches the target.

    `reached` is the number of steps at that look; None if the steps ran out first.
    """

    steps: tuple[int, ...]
    acc_f: tuple[float, ...]
    target: float
    reached: int | None


def relearn(
    model: nn.Module,
    *,
    train: Samples,
    test: Samples,
    forgotten: Tensor,
    before: float,
    generator: torch.Generator,
    config: RelearnConfig = RelearnConfig(),
) -> RelearnCurve:
    """Fine-tune a copy of the model.

    Args:
        model: A ViT as `load_backbone` gives it. It isn't changed.
        train: Training images of all classes.
        test: Test images. Only those of the forgotten classes are used.
        forgotten: Labels (k,).
        before: Acc_f of the backbone on the same test images.
        generator: Source of the draws.
        config: Hyper-parameters.

    Raises:
        DataError: Training images of the forgotten or of the retained classes, or test images of
            the forgotten ones, are missing.
    """
    gone = torch.isin(train.y, forgotten)
    tested = torch.isin(test.y, forgotten)
    if not bool(gone.any()) or bool(gone.all()) or not bool(tested.any()):
        raise DataError(
            "relearning needs training images of forgotten and of retained classes and test images "
            f"of forgotten ones, found {int(gone.sum())}, {int((~gone).sum())}, {int(tested.sum())}"
        )
    shots = draw_per_class(train.y[gone], count=config.shots, generator=generator)
    forget = Samples(train.x[gone][shots], train.y[gone][shots])
    retain = Samples(train.x[~gone], train.y[~gone])
    x, y = test.x[tested], test.y[tested]
    trained, head = _trainable(model, forgotten=forgotten)
    optimizer = _optimizer(trained, config)
    target = config.share * before
    steps: list[int] = []
    accuracies: list[float] = []
    for step in range(config.looks[-1] + 1):
        if step > 0:
            drawn = _drawn(forget, retain, batch=config.batch, generator=generator)
            logits = margin_logits(head, trained(drawn.x), drawn.y)
            optimizer.zero_grad()
            F.cross_entropy(logits, drawn.y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if step not in config.looks:
            continue
        steps.append(step)
        accuracies.append(share_right(trained, x, y).value)
        if accuracies[-1] >= target:
            return RelearnCurve(tuple(steps), tuple(accuracies), target, reached=step)
    return RelearnCurve(tuple(steps), tuple(accuracies), target, reached=None)


def _trainable(model: nn.Module, *, forgotten: Tensor) -> tuple[nn.Module, nn.Linear]:
    head = revived(bare_head(model), forgotten=forgotten)
    trained = with_head(model, head).eval().requires_grad_(True)
    return trained, head


def _optimizer(model: nn.Module, config: RelearnConfig) -> torch.optim.Optimizer:
    vit: Any = model
    head = list(vit.get_classifier().parameters())
    inside = {id(p) for p in head}
    body = [p for p in model.parameters() if id(p) not in inside]
    return torch.optim.Adam(
        [{"params": body, "lr": config.rate}, {"params": head, "lr": config.head_rate}]
    )


def _drawn(forget: Samples, retain: Samples, *, batch: int, generator: torch.Generator) -> Samples:
    """At most `batch` images of each kind."""
    f = torch.randperm(len(forget), generator=generator)[:batch]
    r = torch.randperm(len(retain), generator=generator)[:batch]
    return Samples(torch.cat([forget.x[f], retain.x[r]]), torch.cat([forget.y[f], retain.y[r]]))
