"""The head as an attacker sees it. He holds the weights, so a mask on the head is no obstacle.

There are two kinds: a plain `nn.Linear`, and a `CosineHead`, which is trained with a margin on the
label.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.errors import BackboneError
from forgetting.models.face_transformer import CosineHead

# A bias this far below the others is a mask. Training would never give it.
_MASKED = 100.0


def bare_head(model: nn.Module) -> nn.Linear:
    """A copy of the model's linear head, without what is wrapped around it.

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
    """A copy in which the masked rows of forgotten classes are restarted (see `restarted`).

    No gradient step can get away from a mask.
    """
    masked = masked_rows(head, forgotten=forgotten)
    return restarted(head, forgotten=masked, retained=_retained(head, forgotten))


def masked_rows(head: nn.Linear, *, forgotten: Tensor) -> Tensor:
    """The labels among the forgotten ones whose rows a mask has destroyed.

    A row is masked if its weights are all zero, or if its bias isn't finite or lies more than 100
    below the retained rows' mean.
    """
    weight, bias = head.weight[forgotten], _bias(head)
    masked = (weight == 0).all(dim=1) | ~weight.isfinite().all(dim=1)
    if bias is not None:
        others = bias[_retained(head, forgotten)].mean()
        masked |= ~(bias[forgotten] > others - _MASKED)
    return forgotten[masked]


def restarted(head: nn.Linear, *, forgotten: Tensor, retained: Tensor | None = None) -> nn.Linear:
    """A copy in which the forgotten rows are the mean of the retained rows, bias included.

    So nothing that a method left in these rows helps or hinders the attacker.
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
    """z - s * m on the label (CosFace, Wang et al., CVPR 2018). A plain head's logits don't change.

    Args:
        head: A head of either kind.
        logits: Its logits (n, K).
        y: Labels (n,).
    """
    if not isinstance(head, CosineHead):
        return logits
    penalty = logits.new_full((len(y), 1), -head.scale * head.margin)
    return logits.scatter_add(1, y[:, None], penalty)


def _bias(head: nn.Linear) -> Tensor | None:
    """The head's bias. It may be None, although nn.Linear's type hint says otherwise."""
    bias: Tensor | None = head.bias
    return bias


def _retained(head: nn.Linear, forgotten: Tensor) -> Tensor:
    labels = torch.arange(head.out_features)
    return labels[~torch.isin(labels, forgotten)]
