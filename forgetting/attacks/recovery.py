"""Head re-training: how much of a forgotten class a new head reads from the frozen features.

The recovery experiment of GS-LoRA (Zhao et al., CVPR 2024, fig. 6): only the head is trained, from
where it is, on a tenth of the forget and retain images with their true labels. Cross-entropy, batch
48, AdamW, a cosine from 1e-3 to 1e-5, 50 epochs. A cosine head is trained with the margin on the
label. Its accuracy is given both plain and with that margin, as in the paper: they differ a lot.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.attacks.head import margin_logits
from forgetting.errors import DataError
from forgetting.measure.accuracy import right
from forgetting.measure.features import Features, draw_per_class, rows, split
from forgetting.models.face_transformer import CosineHead


@dataclass(frozen=True)
class RecoveryConfig:
    """`share` of each class's images, `batch` images in a step, `rate` at the start."""

    share: float = 0.1
    epochs: int = 50
    batch: int = 48
    rate: float = 1e-3
    last_rate: float = 1e-5
    weight_decay: float = 0.05
    looks: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 30, 40, 50)


@dataclass(frozen=True)
class RecoveryPoint:
    """Test accuracies after an epoch. Those with margin are None for a head without a margin."""

    epoch: int
    acc_f: float
    acc_r: float
    margin_f: float | None
    margin_r: float | None


def recovery(
    head: nn.Linear,
    *,
    train: Features,
    test: Features,
    forgotten: Tensor,
    generator: torch.Generator,
    config: RecoveryConfig = RecoveryConfig(),
) -> tuple[RecoveryPoint, ...]:
    """Train the head on the cached embeddings.

    Args:
        head: The head to start from. It isn't changed.
        train: Features of all classes, including the forgotten ones.
        test: Test features of the same classes.
        forgotten: Labels (k,).
        generator: Source of the draw and of the order of the batches.
        config: Hyper-parameters.

    Returns:
        The curve at `config.looks` and at the last epoch.

    Raises:
        DataError: Training images of the forgotten or of the retained classes are missing.
    """
    gone = torch.isin(train.y, forgotten)
    if not bool(gone.any()) or bool(gone.all()):
        raise DataError(
            f"head re-training needs images of forgotten and of retained classes, found "
            f"{int(gone.sum())} and {int((~gone).sum())}"
        )
    drawn = rows(train, draw_per_class(train.y, share=config.share, generator=generator))
    trained = copy.deepcopy(head).requires_grad_(True)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.rate, weight_decay=config.weight_decay
    )
    parts = split(test, forgotten=forgotten)
    points = [_look(trained, parts, epoch=0)] if 0 in config.looks else []
    for epoch in range(1, config.epochs + 1):
        # One rate for each epoch: the full one in the first, `last_rate` after the last.
        done = (1 + math.cos(math.pi * (epoch - 1) / config.epochs)) / 2
        optimizer.param_groups[0]["lr"] = config.last_rate + done * (config.rate - config.last_rate)
        order = torch.randperm(len(drawn), generator=generator)
        for i in range(0, len(drawn), config.batch):
            batch = order[i : i + config.batch]
            y = drawn.y[batch]
            logits = margin_logits(trained, trained(drawn.embedding[batch]), y)  # (b, d) -> (b, K)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch in config.looks or epoch == config.epochs:
            points.append(_look(trained, parts, epoch=epoch))
    return tuple(points)


def _look(head: nn.Linear, parts: tuple[Features, Features], *, epoch: int) -> RecoveryPoint:
    plain, margin = [], []
    with torch.no_grad():
        for part in parts:
            logits = head(part.embedding)  # (n, d) -> (n, K)
            plain.append(right(logits, part.y).value)
            margin.append(right(margin_logits(head, logits, part.y), part.y).value)
    known = isinstance(head, CosineHead)
    return RecoveryPoint(
        epoch, plain[0], plain[1], margin[0] if known else None, margin[1] if known else None
    )
