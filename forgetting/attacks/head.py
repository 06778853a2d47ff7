"""The head as an attacker meets it: he holds the weights, so a mask in front of it is no obstacle.

Two kinds: a plain `nn.Linear`, and a `CosineHead`, whose training has a margin on the label.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.errors import BackboneError
from forgetting.models.face_transformer import CosineHead

# A bias this far from all others is a mask and nothing that training would give.
_MASKED = 100.0


def bare_head(model: nn.Module) -> nn.Linear:
    """A copy of the model's linear head; what is wrapped around it is left off.

    Raises:
        BackboneError: There isn't exactly one linear in the head.
    """
    vit: Any = model
    head: nn.Module = vit.get_classifier()
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if len(linears) != 1:
        raise BackboneError(
            f"expected one linear in the model's head, found {len(linears)} in "
            f"{type(head).__name__}; the attacks know linear and cosine heads"
        )
    return copy.deepcopy(linears[0]).requires_grad_(False)


def with_head(model: nn.Module, head: nn.Linear) -> nn.Module:
    """A copy of the model with another head."""
    copied = copy.deepcopy(model)
    vit: Any = copied
    old = vit.get_classifier()
    path = next(name for name, module in copied.named_modules() if module is old)
    parent, _, name = path.rpartition(".")
    setattr(copied.get_submodule(parent), name, copy.deepcopy(head))
    return copied


def revived(head: nn.Linear, *, forgotten: Tensor) -> nn.Linear:
    """A copy in which masked rows of forgotten classes are as `restarted` makes them.

    Masked means that the row's weights are all zero, or its bias is not finite or lies more than
    100 below the retained rows' mean: no gradient step ever leaves such a place.
    """
    weight, bias = head.weight[forgotten], _bias(head)
    masked = (weight == 0).all(dim=1) | ~weight.isfinite().all(dim=1)
    if bias is not None:
        others = bias[_retained(head, forgotten)].mean()
        masked |= ~(bias[forgotten] > others - _MASKED)
    return restarted(head, forgotten=forgotten[masked], retained=_retained(head, forgotten))


def restarted(head: nn.Linear, *, forgotten: Tensor, retained: Tensor | None = None) -> nn.Linear:
    """A copy in which the forgotten rows are the mean of the retained rows, bias included.

    Nothing of what a method left in those rows is used, good or bad for the attacker.
    """
    copied = copy.deepcopy(head)
    kept = _retained(head, forgotten) if retained is None else retained
    with torch.no_grad():
        copied.weight[forgotten] = head.weight[kept].mean(dim=0)
        bias = _bias(copied)
        if bias is not None:
            bias[forgotten] = bias[kept].mean()
    return copied


def margin_logits(head: nn.Linear, logits: Tensor, y: Tensor) -> Tensor:
    """z - s * m on the label (CosFace, Wang et al., CVPR 2018); a plain head's stay as they are.

    Args:
        head: Of either kind.
        logits: Its own (n, K).
        y: Labels (n,).
    """
    if not isinstance(head, CosineHead):
        return logits
    penalty = logits.new_full((len(y), 1), -head.scale * head.margin)
    return logits.scatter_add(1, y[:, None], penalty)


def _bias(head: nn.Linear) -> Tensor | None:
    """nn.Linear's bias is None where there is none, whatever its type says."""
    bias: Tensor | None = head.bias
    return bias


def _retained(head: nn.Linear, forgotten: Tensor) -> Tensor:
    labels = torch.arange(head.out_features)
    return labels[~torch.isin(labels, forgotten)]
