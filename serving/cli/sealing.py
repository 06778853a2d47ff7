"""Sealing: makes the active stack into a backbone of its own, without the classes under erasure.

    W' = W_0 + sum B A in the blocks;  head' = the head after the feature edit (folded: head' e =
    head (M e + m)), without the rows of the classes under erasure

Removing the rows replaces the guard: the softmax of the remaining logits equals that of the masked
logits, so responses are the same. The feature edit is folded into the head. What it hides from
the head is still in the features, so the spec says `edit_in_head`, and a server of that backbone
answers no request for an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from forgetting.adapter.low_rank import AnyAdapter
from forgetting.adapter.stack import EffectiveState, effective_state, install, shared_copy
from forgetting.erasure.edit import folded
from forgetting.models.backbone import Backbone, build_model, freeze
from serving.errors import ServingError

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit. Both are float32, rounded once."""


class SealError(ServingError):
    """The stack can't be made into a backbone; the message says why."""


def sealed_backbone(
    backbone: Backbone, adapters: Sequence[AnyAdapter], *, without: Collection[str]
) -> Backbone:
    """The backbone that answers as `backbone` does under `adapters` with the classes `without`
    masked.

    Raises: `SealError`, `forgetting.errors.TargetError` (the stack edits features and the head
    isn't a plain linear layer), `BackboneError`.
    """
    state = effective_state(backbone.model, adapters)
    kept = [i for i, name in enumerate(backbone.spec.classes) if name not in set(without)]
    if len(kept) < 2:
        raise SealError(f"{len(kept)} classes would be left; a backbone needs two")
    spec = replace(
        backbone.spec,
        classes=tuple(backbone.spec.classes[i] for i in kept),
        edit_in_head=backbone.spec.edit_in_head or state.edit is not None,
    )
    model = build_model(spec)
    model.load_state_dict(_tensors(backbone, state, kept))
    sealed = freeze(model, spec)
    _check_same(backbone, state, sealed, kept)
    return sealed


def _tensors(backbone: Backbone, state: EffectiveState, kept: list[int]) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    for path, weight in state.weights.items():
        tensors[f"{path}.weight"] = weight.clone()
    head, path = _head(backbone.model)
    if state.edit is not None:
        weight, bias = folded(head, state.edit)
        if head.bias is None:
            raise SealError("the head has no bias to take up the shift of the feature edit")
        tensors |= {f"{path}.weight": weight, f"{path}.bias": bias}
    rows = torch.tensor(kept)
    for name, tensor in tensors.items():
        # (K, ..) -> (kept, ..)
        if name.startswith(f"{path}.") and tensor.shape[:1] == (len(backbone.spec.classes),):
            tensors[name] = tensor[rows].clone()
    return tensors


def _head(model: nn.Module) -> tuple[nn.Linear, str]:
    head: nn.Linear = model.get_classifier()  # type: ignore[operator]
    return head, next(name for name, module in model.named_modules() if module is head)


def _check_same(
    backbone: Backbone, state: EffectiveState, sealed: Backbone, kept: list[int]
) -> None:
    adapted = shared_copy(backbone.model)
    install(adapted, state)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, *backbone.spec.preprocess.input_size, generator=generator)
    with torch.inference_mode():
        expected = adapted(probe)[:, kept]  # (4, K) -> (4, kept)
        found = sealed.model(probe)
    worst = float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))
    if not worst <= TOLERANCE:
        raise SealError(f"the sealed backbone's logits differ by {worst:.2g}, more than rounding")
