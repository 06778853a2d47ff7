"""Turn trained pairs into a low-rank method's result: the merged model and its figures."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from forgetting.errors import TargetError
from forgetting.methods.protocol import Learned
from forgetting.models.targets import Group, Pair


def merged(model: nn.Module, pairs: Mapping[str, Pair]) -> nn.Module:
    """A copy with W + B A in the named linears, computed in float64 and rounded once.

    Raises:
        TargetError: A path isn't a linear of the model.
    """
    changed = copy.deepcopy(model).requires_grad_(False).eval()
    for path, pair in pairs.items():
        linear = changed.get_submodule(path)
        if not isinstance(linear, nn.Linear):
            raise TargetError(f"{path} is a {type(linear).__name__}, expected a linear")
        linear.weight.copy_((linear.weight.double() + _update(pair)).to(linear.weight.dtype))
    return changed


def block_norms(groups: Sequence[Group], pairs: Mapping[str, Pair]) -> tuple[float, ...]:
    """|[B_1 A_1, B_2 A_2]|_F of each block, bottom to top; 0 for a block without pairs."""
    norms = []
    for group in groups:
        squares = [
            float(_update(pairs[path]).square().sum()) for path in group.paths if path in pairs
        ]
        norms.append(math.sqrt(sum(squares)))
    return tuple(norms)


def low_rank(
    model: nn.Module,
    groups: Sequence[Group],
    pairs: Mapping[str, Pair],
    *,
    trainable: int,
    steps: int,
    cpu_seconds: float,
) -> Learned:
    """The result of a method that trains pairs.

    Args:
        model: The task's model, without the pairs.
        groups: All groups of the backbone.
        pairs: The surviving (A, B) by module path, at scale 1.
        trainable: How many numbers the optimizer could change.
        steps: Steps that were taken.
        cpu_seconds: CPU time of the training.
    """
    return Learned(
        model=merged(model, pairs),
        trainable=trainable,
        stored=sum(a.numel() + b.numel() for a, b in pairs.values()),
        steps=steps,
        cpu_seconds=cpu_seconds,
        groups_kept=sum(any(path in pairs for path in group.paths) for group in groups),
        groups_total=len(groups),
        update_norms=block_norms(groups, pairs),
        pairs=dict(pairs),
    )


def _update(pair: Pair) -> Tensor:
    a, b = pair
    return b.double() @ a.double()  # (out, r) @ (r, in) -> (out, in)


def detached(a: Tensor, b: Tensor) -> Pair:
    """A copy of a pair, without gradients."""
    with torch.no_grad():
        return a.detach().clone(), b.detach().clone()
