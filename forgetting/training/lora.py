"""Low-rank pairs in training: y = W x + b + B (A x) on some linears of a frozen model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forgetting.models.targets import Group
from forgetting.training.losses import group_norm


class LowRank(nn.Module):
    """A frozen linear with a trainable pair beside it. B starts at zero, so at first it adds 0."""

    def __init__(self, base: nn.Linear, *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        a = torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + (x @ self.a.T) @ self.b.T  # (.., in) @ (in, r) @ (r, out) -> (.., out)


def attach(
    model: nn.Module, groups: Sequence[Group], *, rank: int, generator: torch.Generator
) -> dict[Group, tuple[LowRank, ...]]:
    """Put a pair beside the linears of every group; only the pairs require gradients."""
    model.requires_grad_(False)
    attached = {}
    for group in groups:
        pairs = []
        for path in group.paths:
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)  # find_groups has checked it
            pair = LowRank(linear, rank=rank, generator=generator)
            _replace(model, path, pair)
            pairs.append(pair)
        attached[group] = tuple(pairs)
    return attached


def detach(model: nn.Module, group: Group, pairs: Sequence[LowRank]) -> None:
    """Put the group's plain linears back."""
    for path, pair in zip(group.paths, pairs, strict=True):
        _replace(model, path, pair.base)


def update_parts(pairs: Sequence[LowRank]) -> list[Tensor]:
    """The B factors of a group. They tell whether it is zero: BA is zero exactly when B is."""
    return [pair.b for pair in pairs]


def update_norm(pairs: Sequence[LowRank]) -> float:
    return group_norm(update_parts(pairs))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
