"""The images and labels of one step. One generator draws them all."""

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
    """Drawn rows (n,) of a set of samples, their images x (n, c, h, w) and labels y (n,)."""

    rows: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Shuffle:
    """Endless batches of a set of samples. Every row comes once before any row comes twice."""

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
    """What a step may draw: forget images, retain images, wrong labels."""

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
        """Draw labels (count,) uniformly among the retained ones of `classes`.

        The published code draws (y + U{1..K}) modulo the number of *forget* classes. So its wrong
        labels are a few fixed ids, and some of these are under erasure. That isn't copied here.
        """
        kept = retained_classes(classes, forgotten=self._forgotten)
        generator = self._generator
        drawn = torch.randint(len(kept), (count,), generator=generator, device=generator.device)
        return kept[drawn.to(kept.device)]


def retained_classes(classes: int, *, forgotten: Tensor) -> Tensor:
    """The labels in 0..classes-1 that aren't under erasure, ascending.

    Raises:
        TrainingError: All are under erasure.
    """
    every = torch.arange(classes, device=forgotten.device)
    kept = every[~torch.isin(every, forgotten)]
    if len(kept) == 0:
        raise TrainingError(f"all {classes} classes of the head are under erasure; nothing is kept")
    return kept


def label_loss(model: nn.Module, logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy with which the backbone was trained: mean over the batch, in nats.

    For a CosFace head, with its `scale` s and `margin` m, it takes s m off the label's logit, as
    the published code does in all of its methods. For any other head it is the plain cross-entropy.

    Args:
        model: Its head tells whether there is a margin.
        logits: Logits without the margin (n, K).
        y: Labels (n,).
    """
    return F.cross_entropy(logits - F.one_hot(y, logits.shape[1]) * label_penalty(model), y)


def label_penalty(model: nn.Module) -> float:
    """s m of a CosFace head; 0 of any other head."""
    head = head_of(model)
    scale, margin = getattr(head, "scale", None), getattr(head, "margin", None)
    if scale is None or margin is None:
        return 0.0
    return float(scale) * float(margin)


def head_of(model: nn.Module) -> nn.Module:
    """The model's classifier, which maps embeddings (n, d) to logits (n, K).

    Raises:
        TrainingError: The model isn't a timm model with one classifier.
    """
    ask = getattr(model, "get_classifier", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module):
        raise TrainingError(f"{type(model).__name__} has no single classifier; expected a timm ViT")
    return head
