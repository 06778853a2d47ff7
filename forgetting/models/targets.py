"""The linears that an adapter may change: `mlp.fc1` and `mlp.fc2` of each block.

GS-LoRA (CVPR 2024) puts its low-rank pairs into these two linears of every block's FFN, and prunes
whole blocks; so the two form a group. A model with another kind of FFN (SwiGLU, mixture of experts,
...) is refused; the error lists its linears. For the papers' ablations a method may take the
attention's linears, and a group for each linear; what is served has neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from forgetting.errors import TargetError

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r). A low-rank update adds B A to a linear's weight."""


_FFN = ("mlp.fc1", "mlp.fc2")
_ATTENTION = ("attn.qkv", "attn.proj")
Targets = Literal["ffn", "attention", "both"]
Grouping = Literal["block", "lora"]


@dataclass(frozen=True)
class Group:
    """Linears of block `index` that are kept or dropped together, by their module paths."""

    index: int
    paths: tuple[str, ...]


def find_groups(
    model: nn.Module, *, targets: Targets = "ffn", grouping: Grouping = "block"
) -> tuple[Group, ...]:
    """The groups, bottom to top.

    Args:
        model: A ViT.
        targets: The linears: `mlp.fc1` and `mlp.fc2`, or `attn.qkv` and `attn.proj`, or all four.
        grouping: One group per block, or one per linear (the papers' `lora`).

    Raises:
        ValueError: `targets` or `grouping` is unknown.
        TargetError: The model has no blocks, or a block's FFN isn't `mlp.fc1` and `mlp.fc2`, both
            linear. The message lists the linears that the block has instead.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) == 0:
        kinds = ", ".join(f"{name} ({type(m).__name__})" for name, m in model.named_children())
        raise TargetError(f"{type(model).__name__} has no Transformer `blocks`; found {kinds}")
    for value, known in ((targets, Targets), (grouping, Grouping)):
        if value not in get_args(known):
            raise ValueError(f"expected one of {', '.join(get_args(known))}, found {value!r}")
    names = {"ffn": _FFN, "attention": _ATTENTION, "both": _ATTENTION + _FFN}[targets]
    groups: list[Group] = []
    for i, block in enumerate(blocks):
        mlp = getattr(block, "mlp", None)
        ends = [getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)]
        extra = [n for n, m in _linears(mlp) if n not in ("fc1", "fc2")]
        if not all(isinstance(end, nn.Linear) for end in ends) or extra or _is_gated(*ends):
            raise TargetError(_complaint(i, block, mlp))
        inside = dict(block.named_modules())
        lacking = [name for name in names if not isinstance(inside.get(name), nn.Linear)]
        if lacking:
            raise TargetError(f"block {i} ({type(block).__name__}) has no linear {lacking[0]}")
        paths = tuple(f"blocks.{i}.{name}" for name in names)
        parts = [paths] if grouping == "block" else [(path,) for path in paths]
        groups += [Group(i, part) for part in parts]
    return tuple(groups)


def _is_gated(fc1: object, fc2: object) -> bool:
    """A packed gated FFN (GluMlp) also has an fc1 and an fc2, but its fc1 is twice as wide."""
    return (
        isinstance(fc1, nn.Linear)
        and isinstance(fc2, nn.Linear)
        and fc1.out_features != fc2.in_features
    )


def _linears(module: nn.Module | None) -> list[tuple[str, nn.Linear]]:
    if module is None:
        return []
    return [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]


def _complaint(index: int, block: nn.Module, mlp: nn.Module | None) -> str:
    found = [
        f"{name} ({m.in_features} -> {m.out_features})"
        for name, m in _linears(block)
        if not name.startswith("attn")
    ]
    kind = type(mlp).__name__ if mlp is not None else "no `mlp`"
    return (
        f"block {index} ({type(block).__name__}): expected an FFN with linears mlp.fc1 and mlp.fc2 "
        f"of matching widths, found {kind} with {', '.join(found) or 'no linears'}; "
        "gated FFNs (SwiGLU, GEGLU) and mixtures of experts are not supported"
    )
