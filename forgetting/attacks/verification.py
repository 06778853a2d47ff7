"""Is this the same person? Pairs of embeddings, without any head.

Served embeddings are compared with each other, so a head tells nothing about them. Two images of a
forgotten identity must match no better than those of a person that the model never saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.measure.features import Features

FAR = 1e-3
"""The share of impostor pairs that may be accepted."""


@dataclass(frozen=True)
class Verification:
    """How well pairs of one identity are told from pairs of two.

    Attributes:
        auc: P(a genuine pair is more alike than an impostor pair).
        tar: Share of genuine pairs accepted at the threshold that accepts `FAR` of the impostor
            pairs; None if there are fewer than 1 / `FAR` of these.
        rank_1: Share of images whose most alike other image is of the same identity, among all.
        genuine: Number of genuine pairs.
        impostor: Number of impostor pairs.
    """

    auc: float
    tar: float | None
    rank_1: float
    genuine: int
    impostor: int


def verification(features: Features, *, chosen: Tensor) -> Verification | None:
    """Compare all pairs of images of some identities.

    Args:
        features: Features of test images of all identities.
        chosen: Labels (k,): genuine pairs are theirs. Impostor pairs have one image of theirs and
            one of any other identity.

    Returns:
        None if there is no genuine or no impostor pair.
    """
    unit = F.normalize(features.embedding.double(), dim=1)
    own = torch.isin(features.y, chosen)
    rows = own.nonzero().flatten()
    alike = unit[rows] @ unit.T  # (m, dim) @ (dim, n) -> (m, n)
    same = features.y[rows, None] == features.y[None, :]
    others = torch.arange(len(features.y))[None, :] != rows[:, None]
    # A pair of two chosen images is in the matrix twice; keep it once.
    once = ~own[None, :] | (torch.arange(len(features.y))[None, :] > rows[:, None])
    genuine, impostor = alike[same & others & once], alike[~same & once]
    if not len(genuine) or not len(impostor):
        return None
    tar = None
    if len(impostor) * FAR >= 1:
        accepted = int(len(impostor) * FAR)
        threshold = impostor.topk(accepted).values[-1]
        tar = float((genuine > threshold).double().mean())
    nearest = alike.masked_fill(~others, -torch.inf).argmax(dim=1)
    ordered = torch.sort(impostor).values
    below = torch.searchsorted(ordered, genuine, right=False)
    upto = torch.searchsorted(ordered, genuine, right=True)
    return Verification(
        auc=float(((below + upto).double() / 2).mean() / len(impostor)),
        tar=tar,
        rank_1=float((features.y[nearest] == features.y[rows]).double().mean()),
        genuine=len(genuine),
        impostor=len(impostor),
    )
