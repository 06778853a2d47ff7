"""A stack of adapters in force: what it changes in the backbone, and how to put that into a model.

    W_t = W_0 + sum_i B_i A_i           over the trained adapters
    e'  = E_t(... E_1(e))               over the erasures, in the order of the stack

Both depend only on the stack. They are computed in float64 from the bare backbone and rounded once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from forgetting.adapter.low_rank import Adapter, AnyAdapter, effective_weights
from forgetting.erasure.edit import FeatureEdit, composed, install_edit
from forgetting.models.backbone import Backbone


@dataclass(frozen=True, eq=False)
class EffectiveState:
    """What differs from the bare backbone.

    Attributes:
        weights: Float32 weights (out, in) of the linears that changed, by module path.
        edit: The edit of the feature that the head reads; None if the stack has no erasure.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    edit: FeatureEdit | None = None


def effective_state(model: nn.Module, adapters: Sequence[AnyAdapter]) -> EffectiveState:
    """What a stack changes in a backbone.

    Args:
        model: The bare backbone model. It isn't changed.
        adapters: The stack, bottom first.

    Raises:
        AdapterError: A pair's module isn't a linear of this model.
    """
    pairs = [adapter for adapter in adapters if isinstance(adapter, Adapter)]
    erasures = [adapter.erasure for adapter in adapters if adapter.erasure is not None]
    return EffectiveState(
        weights=effective_weights(model, pairs), edit=composed(erasures) if erasures else None
    )


def install(model: nn.Module, state: EffectiveState) -> None:
    """Put a state into a copy of the bare model. It replaces tensors and writes into none.

    Raises:
        TargetError: The model has no place for an edit of its features.
    """
    for path, weight in state.weights.items():
        linear = model.get_submodule(path)
        old = linear.weight
        linear.weight = nn.Parameter(weight.to(old.device), requires_grad=False)  # type: ignore[arg-type]
    if state.edit is not None:
        install_edit(model, state.edit)


def overlaid(model: nn.Module, state: EffectiveState) -> nn.Module:
    """A model with `state` in force that shares as much as possible with `model`.

    Only the changed linears and the modules around them are new objects. (In a small backbone, the
    module objects take as much memory as a release's weights.) Hooks are shared, and so is the
    mode: both models are for inference.

    Raises:
        TargetError: The model has no place for an edit of its features.
    """
    root = _own_children(model)
    own = {"": root}
    for path in state.weights:
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            inner = ".".join(names[:depth])
            if inner not in own:
                outer = own[".".join(names[: depth - 1])]
                own[inner] = _own_children(outer.get_submodule(names[depth - 1]))
                setattr(outer, names[depth - 1], own[inner])
    install(root, state)
    return root


def _own_children(module: nn.Module) -> nn.Module:
    """A shallow copy. Replacing its children or parameters doesn't change `module`."""
    twin = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[name] = module.__dict__[name].copy()
    return twin


def adapted_model(
    backbone: Backbone, stack: Sequence[AnyAdapter], *, edits: bool = True
) -> nn.Module:
    """A copy of the backbone's model with the stack in force. No tensor is shared.

    Args:
        backbone: The bare backbone.
        stack: The adapters, bottom first.
        edits: Whether to put the stack's feature edits into the model too. Without them it answers
            as its weights alone say.
    """
    model = copy.deepcopy(backbone.model)
    state = effective_state(backbone.model, stack)
    install(model, state if edits else EffectiveState(weights=state.weights))
    return model


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same tensors. It takes next to no memory."""
    # deepcopy doesn't copy what is already in the memo.
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
