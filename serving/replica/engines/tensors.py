"""The tensors that a forward pass takes as arguments, and those that a release changes.

For engines that prepare one forward pass (a compiled or an exported graph) and feed each release's
tensors to it: the release's own where it changed some, else the bare backbone's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forgetting.adapter.stack import EffectiveState, shared_copy
from forgetting.erasure.edit import FeatureEdit, edit_point, install_edit
from forgetting.errors import TargetError
from forgetting.models.backbone import features_and_logits
from serving.replica.engines import EngineError

MATRIX, OFFSET = "head_drop.matrix", "head_drop.offset"


class WithFeatures(nn.Module):
    """A model whose forward pass also returns what its head reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> features (B, d) and logits (B, K)."""
        return features_and_logits(self.model, images)


def editable_copy(model: nn.Module) -> nn.Module:
    """A copy that shares the tensors, in eval mode, with an identity feature edit if the model has
    a place for one. The identity changes nothing: e I + 0 is e, bit for bit."""
    copy = shared_copy(model).eval()
    try:
        width = edit_point(copy)
    except TargetError:
        return copy
    install_edit(copy, FeatureEdit(torch.eye(width), torch.zeros(width)))
    return copy


def bare_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of a backbone and the identity edit, by their names in `editable_copy`'s
    model."""
    copy = editable_copy(model)
    named = {name: tensor.detach() for name, tensor in copy.named_parameters()}
    buffers = dict(copy.named_buffers())
    return named | {name: buffers[name] for name in (MATRIX, OFFSET) if name in buffers}


def changed_tensors(state: EffectiveState, bare: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a release changes, by their names in `editable_copy`'s model.

    Raises:
        TargetError: The model has no place for an edit of this width.
        EngineError: The model has no tensor of that name and shape.
    """
    changed = {f"{path}.weight": weight for path, weight in state.weights.items()}
    if state.edit is not None:
        if MATRIX not in bare or bare[MATRIX].shape != state.edit.matrix.shape:
            found = f"one of {len(bare[MATRIX])}" if MATRIX in bare else "none"
            raise TargetError(
                f"expected a place for an edit of {len(state.edit.matrix)} features, found {found}"
            )
        changed |= {MATRIX: state.edit.matrix, OFFSET: state.edit.offset}
    for name, tensor in changed.items():
        if name not in bare or bare[name].shape != tensor.shape:
            found = f"it is {tuple(bare[name].shape)}" if name in bare else "there is none"
            raise EngineError(
                f"a release changes {name} of shape {tuple(tensor.shape)}, but in the backbone "
                f"{found}"
            )
    return changed
