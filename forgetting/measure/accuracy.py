"""Accuracies with confidence intervals, and the figures that the papers report from them.

All accuracies are plain top-1 before any mask: the arg max over all classes, without a margin. Only
`margin_right` counts with the margin, as the papers' tables of faces do.
H = 2 * Acc_r * Drop / (Acc_r + Drop), Drop = Acc_f(before) - Acc_f(after)   (GS-LoRA, CVPR 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.models.face_transformer import CosineHead

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with the Wilson 95 % interval (E. B. Wilson, JASA 1927)."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share; 0 if nothing was counted."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; (0, 1) if nothing was counted."""
        if not self.n:
            return (0.0, 1.0)
        z2 = _Z95 * _Z95 / self.n
        centre = (self.value + z2 / 2) / (1 + z2)
        half = _Z95 * math.sqrt(self.value * (1 - self.value) / self.n + z2 / (4 * self.n))
        half /= 1 + z2
        # At 0 and at n hits, rounding would move the end off 0 or 1.
        low = 0.0 if self.hits == 0 else max(0.0, centre - half)
        high = 1.0 if self.hits == self.n else min(1.0, centre + half)
        return (low, high)


def predict(model: nn.Module, x: Tensor, *, batch: int = 256) -> Tensor:
    """Logits (n, classes) of images (n, c, h, w), without gradients."""
    with torch.inference_mode():
        parts = [model(x[i : i + batch]) for i in range(0, len(x), batch)]
    return torch.cat(parts) if parts else x.new_empty(0, 0)


def share_right(model: nn.Module, x: Tensor, y: Tensor) -> Share:
    """Plain top-1 accuracy."""
    return right(predict(model, x), y)


def right(logits: Tensor, y: Tensor) -> Share:
    """Plain top-1 accuracy of logits (n, classes) for labels (n,)."""
    return Share(int((logits.argmax(dim=1) == y).sum()) if len(y) else 0, len(y))


def margin_right(head: CosineHead, embedding: Tensor, y: Tensor) -> Share:
    """Accuracy as the GS-LoRA papers' code counts it on faces: with the margin on the label.

    An image is right only if its class wins by more than the margin. So the figure is below plain
    accuracy, and 0 on a forgotten class says less than a plain 0. It is only for comparison with
    the papers' tables.

    Args:
        head: The model's head.
        embedding: What the head reads (n, dim).
        y: Labels (n,).
    """
    with torch.inference_mode():
        return right(head.margin_logits(embedding, y), y)


def by_class(logits: Tensor, y: Tensor) -> dict[int, Share]:
    """Accuracy of each label that occurs."""
    return {c: right(logits[y == c], y[y == c]) for c in sorted(set(y.tolist()))}


def drop(before: Share, after: Share) -> float:
    """Acc(before) - Acc(after)."""
    return before.value - after.value


def h_mean(acc_r: float, drop_f: float) -> float:
    """2 * Acc_r * Drop / (Acc_r + Drop); 0 if one of them isn't positive."""
    return 2 * acc_r * drop_f / (acc_r + drop_f) if acc_r > 0 and drop_f > 0 else 0.0


def most_hit(logits: Tensor, *, forgotten: Tensor) -> Share:
    """How many forget images go to the retained class that receives most of them.

    Args:
        logits: Of forget images (n, classes).
        forgotten: Labels under erasure (k,). Answers with one of them don't count.
    """
    answers = logits.argmax(dim=1) if len(logits) else torch.empty(0, dtype=torch.int64)
    received = answers[~torch.isin(answers, forgotten)]
    most = int(received.bincount().max()) if len(received) else 0
    return Share(most, len(answers))
