"""The images and labels of one step, all drawn by one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.samples import ForgetData, Samples
from forgetting.errors import TrainingError
from forgetting.methods.protocol import Budget


@dataclass(frozen=True)
class Drawn:
    """Rows (n,) of a set of samples, with their images x (n, c, h, w) and labels y (n,)."""

    rows: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Shuffle:
    """Endless batches of a set of samples, every row once before any row twice."""

    def __init__(self, samples: Samples, *, batch: int, generator: torch.Generator) -> None:
        self._samples, self._generator = samples, generator
        self._batch = min(batch, len(samples))
        self._rows = torch.empty(0, dtype=torch.int64, device=generator.device)

    def next(self) -> Drawn:
        if len(self._rows) < self._batch:
            generator = self._generator
            n = len(self._samples)
            fresh = torch.randperm(n, generator=generator, device=generator.device)
            self._rows = torch.cat([self._rows, fresh])
        taken, self._rows = self._rows[: self._batch], self._rows[self._batch :]
        rows = taken.to(self._samples.y.device)
        return Drawn(rows, self._samples.x[rows], self._samples.y[rows])


class Draws:
    """What a step may ask for: forget images, retain images, wrong labels."""

    def __init__(self, data: ForgetData, budget: Budget, *, generator: torch.Generator) -> None:
        self._generator = generator
        self._forget = Shuffle(data.forget, batch=budget.batch, generator=generator)
        self._retain = Shuffle(data.retain, batch=budget.batch, generator=generator)
        self._forgotten = data.forgotten

    def forget(self) -> Drawn:
        return self._forget.next()

    def retain(self) -> Drawn:
        return self._retain.next()

    def wrong(self, count: int, *, classes: int) -> Tensor:
        """Labels (count,), uniformly among the retained of `classes`, anew at every draw.

        The published code draws (y + U{1..K}) modulo the number of *forget* classes, so that its
        wrong labels are a few fixed ids, some of them under erasure themselves; not copied.
        """
        kept = retained_classes(classes, forgotten=self._forgotten)
        generator = self._generator
        drawn = torch.randint(len(kept), (count,), generator=generator, device=generator.device)
        return kept[drawn.to(kept.device)]


def retained_classes(classes: int, *, forgotten: Tensor) -> Tensor:
    """The labels of 0..classes-1 that aren't under erasure, ascending.

    Raises:
        TrainingError: There are none.
    """
    every = torch.arange(classes, device=forgotten.device)
    kept = every[~torch.isin(every, forgotten)]
    if len(kept) == 0:
        raise TrainingError(f"all {classes} classes of the head are under erasure; nothing is kept")
    return kept


def label_loss(model: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy as the backbone itself was trained: the mean over the batch, in nats.

    A CosFace head (attributes `scale` s and `margin` m) takes s m off the label's logit, as the
    published code does for all of its methods; any other head is plain cross-entropy.

    Args:
        model: Its head says whether there is a margin.
        logits: Plain ones (n, K).
        y: Labels (n,).
    """
    return F.cross_entropy(logits - F.one_hot(y, logits.shape[1]) * label_penalty(model), y)


def label_penalty(model: nn.Module) -> float:
    """s m of a CosFace head, 0 of any other."""
    head = head_of(model)
    scale, margin = getattr(head, "scale", None), getattr(head, "margin", None)
    if scale is None or margin is None:
        return 0.0
    return float(scale) * float(margin)


def head_of(model: nn.Module) -> nn.Module:
    """The classifier, which maps an embedding (n, d) to logits (n, K).

    Raises:
        TrainingError: The model isn't a timm model with one classifier.
    """
    ask = getattr(model, "get_classifier", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module):
        raise TrainingError(f"{type(model).__name__} has no single classifier; expected a timm ViT")
    return head
