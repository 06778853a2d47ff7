"""The affine edit of the feature that the head reads: one layer between pooling and head.

    e' = e - B A (e - mean) + shift        (a `LowRankEdit`: rank k, closed form)
    e' = M e + m                           (a `FeatureEdit`: a stack of them, composed)

The layer replaces the ViT's `head_drop`, which comes after pooling and norm and right before the
head (timm's `forward_head`: pool, fc_norm, head_drop, head). So a linear head, a cosine head and an
embedding endpoint all read the edited feature. An engine that can't add a layer uses `folded`,
which gives the same logits from a linear head alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.errors import TargetError, TrainingError

MAX_RANK = 128
"""The highest rank of what one task learns: a trained pair or a fitted feature edit."""


@dataclass(frozen=True, eq=False)
class LowRankEdit:
    """e' = e - B A (e - mean) + shift.

    Attributes:
        a: (k, d).
        b: (d, k). One fitted erasure has A B = I, so B A is a projection of rank k. Two erasures
            in a row aren't a projection any more.
        mean: (d,). The edit moves the erased classes' means to `mean + shift`.
        shift: (d,), the same for every image.
    """

    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def stored(self) -> int:
        """How many numbers must be kept: 2 k d + 2 d."""
        return sum(t.numel() for t in (self.a, self.b, self.mean, self.shift))


def erased(e: Tensor, erasure: LowRankEdit) -> Tensor:
    """Features (n, d) after an erasure: e - B A (e - mean) + shift."""
    # ((n, d) @ (d, k)) @ (k, d) -> (n, d)
    return e - ((e - erasure.mean) @ erasure.a.T) @ erasure.b.T + erasure.shift


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """e' = M e + m with M (d, d) and m (d,)."""

    matrix: Tensor = field(repr=False)
    offset: Tensor = field(repr=False)


class EditLayer(nn.Module):
    """An edit in a model, followed by the dropout that it replaced."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, edit: FeatureEdit, drop: nn.Module) -> None:
        super().__init__()
        # Persistent buffers: weights saved with an edit can't be loaded into a model without one.
        self.register_buffer("matrix", edit.matrix)
        self.register_buffer("offset", edit.offset)
        self.drop = drop

    def forward(self, e: Tensor) -> Tensor:
        edited = F.linear(e, self.matrix, self.offset)  # (.., d) @ (d, d) + (d,) -> (.., d)
        dropped: Tensor = self.drop(edited)
        return dropped


def composed(erasures: Sequence[LowRankEdit], *, below: FeatureEdit | None = None) -> FeatureEdit:
    """E_t(... E_1(below(e))) as one affine map, computed in float64 and rounded once to float32.

    Args:
        erasures: At least one, in the order in which they are applied.
        below: The edit that comes before them; None if there is none.
    """
    width = erasures[0].mean.shape[0]
    if below is None:
        matrix = torch.eye(width, dtype=torch.float64)
        offset = torch.zeros(width, dtype=torch.float64)
    else:
        matrix, offset = below.matrix.double().cpu(), below.offset.double().cpu()
    for erasure in erasures:
        a, b = erasure.a.double(), erasure.b.double()
        matrix = matrix - b @ (a @ matrix)  # (d, k) @ ((k, d) @ (d, d)) -> (d, d)
        offset = offset - b @ (a @ (offset - erasure.mean.double())) + erasure.shift.double()
    return FeatureEdit(matrix.float(), offset.float())


def edit_point(model: nn.Module) -> int:
    """Width d of the feature that an edit of this model would change.

    Raises:
        TargetError: The model has no `head_drop` between pooling and head to replace.
    """
    vit: Any = model
    drop = getattr(model, "head_drop", None)
    if not isinstance(drop, nn.Dropout | nn.Identity | EditLayer):
        found = "none" if drop is None else type(drop).__name__
        raise TargetError(
            f"{type(model).__name__}: expected a dropout named `head_drop` between pooling and "
            f"head, found {found}; the feature of this model can't be edited, train an adapter "
            "instead"
        )
    head = vit.get_classifier()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise TargetError(
            f"{type(model).__name__}: expected a head with a weight of one row per class, found "
            f"{type(head).__name__}"
        )
    return int(weight.shape[1])


def install_edit(model: nn.Module, edit: FeatureEdit) -> None:
    """Put an edit into a model. It replaces one that is already there.

    Raises:
        TargetError: The model has no place for it, or its features have another width.
    """
    vit: Any = model
    width = edit_point(model)
    if tuple(edit.matrix.shape) != (width, width) or tuple(edit.offset.shape) != (width,):
        raise TargetError(
            f"expected an edit of {width} features, found M {tuple(edit.matrix.shape)} and m "
            f"{tuple(edit.offset.shape)}"
        )
    drop = vit.head_drop.drop if isinstance(vit.head_drop, EditLayer) else vit.head_drop
    layer = EditLayer(edit, drop).to(vit.get_classifier().weight.device)
    vit.head_drop = layer.train(model.training)


def installed_edit(model: nn.Module) -> FeatureEdit | None:
    """The edit in a model; None if there is none."""
    layer = getattr(model, "head_drop", None)
    return FeatureEdit(layer.matrix, layer.offset) if isinstance(layer, EditLayer) else None


MOST_TAKEN = 2 / 3
"""The most of a feature's dimensions that edits may take. What is left must tell the others."""


def check_room(model: nn.Module, *, classes: int) -> None:
    """Check that a closed form of so many classes leaves enough of the feature.

    Each erased class takes one dimension. 80 classes out of 64 dimensions left 2 % of Acc_r.

    Raises:
        TrainingError: It doesn't. The message says how many classes fit.
        TargetError: The model has no place for an edit.
    """
    width, edit = edit_point(model), installed_edit(model)
    taken = 0 if edit is None else width - int(torch.linalg.matrix_rank(edit.matrix, rtol=1e-4))
    room = int(MOST_TAKEN * width) - taken
    if classes > room:
        raise TrainingError(
            f"a closed form of {classes} classes takes {classes} of the feature's {width} "
            f"dimensions, of which earlier edits took {taken}; at most {max(room, 0)} more may go, "
            "or too little is left to tell the other classes: train an adapter (`lethe`) instead"
        )


def without_edit(model: nn.Module) -> nn.Module:
    """The model as its weights alone would answer: the same tensors, without the edit.

    Only the modules on the way to the edit are new objects. A model without an edit is returned as
    it is.
    """
    layer = getattr(model, "head_drop", None)
    if not isinstance(layer, EditLayer):
        return model
    bare = copy.copy(model)
    bare.__dict__["_modules"] = {**model._modules, "head_drop": layer.drop}
    return bare


def folded(head: nn.Linear, edit: FeatureEdit) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear head that reads e as `head` reads M e + m.

    W' = W M, b' = b + W m. The logits are the same, but the embedding is the unedited one. So this
    is only for engines that return logits and no embeddings.

    Raises:
        TargetError: The head isn't a plain linear. (A cosine head divides by the length of M e +
            m.)
    """
    if type(head) is not nn.Linear:
        raise TargetError(
            f"an edit folds into a linear head only, found {type(head).__name__}; install it as a "
            "layer instead"
        )
    weight = head.weight.detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double().cpu()
    # (c, d) @ (d, d) -> (c, d);  (c, d) @ (d,) -> (c,)
    merged = weight @ edit.matrix.double().cpu()
    return merged.float(), (bias + weight @ edit.offset.double().cpu()).float()
