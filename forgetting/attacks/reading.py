"""Who was forgotten? Read it from the stored adapter.

An adapter is the difference between two models. Whoever holds it, the backbone and photos of
candidates needs no training: the candidates whose photos the adapter moves most are those that it
was learned to forget. No method that changes weights can prevent this, so the figure says how
confidential the file is, and not how well it forgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forgetting.attacks.membership import auc
from forgetting.measure.calibration import jensen_shannon
from forgetting.measure.features import Features


@dataclass(frozen=True)
class Reading:
    """How well the change between two models points at the forgotten classes.

    Attributes:
        auc: P(a forgotten class changes more than a retained one).
        certain: Share of forgotten classes that change more than every retained class.
        forgotten: Number of forgotten classes among the candidates.
        candidates: Number of all candidate classes.
    """

    auc: float
    certain: float
    forgotten: int
    candidates: int


def read_change(before: Features, after: Features, *, forgotten: Tensor) -> Reading | None:
    """Rank the candidate classes by how much their images change, in feature or in answer.

    Of the two rankings the attacker's better one counts.

    Args:
        before: Images of the candidates in the model without the adapter.
        after: The same images in the same order, with it.
        forgotten: Labels (k,).

    Returns:
        None if the candidates hold no forgotten or no retained class.
    """
    labels = torch.unique(before.y)
    gone = torch.isin(labels, forgotten)
    if not bool(gone.any()) or bool(gone.all()):
        return None
    moved = (after.embedding - before.embedding).norm(dim=1)
    scores = [
        torch.tensor([float(moved[before.y == label].mean()) for label in labels.tolist()]),
        torch.tensor(
            [
                jensen_shannon(before.logits[before.y == label], after.logits[before.y == label])
                for label in labels.tolist()
            ]
        ),
    ]
    readings = [
        Reading(
            auc=auc(score[gone], score[~gone]),
            certain=float((score[gone] > score[~gone].max()).float().mean()),
            forgotten=int(gone.sum()),
            candidates=len(labels),
        )
        for score in scores
    ]
    return max(readings, key=lambda r: (r.auc, r.certain))
