"""Compaction: one adapter that gives the same outputs as a stack of adapters.

    sum_i B_i A_i = [B_1 B_2 ...] [A_1; A_2; ...]            (pairs: along the rank, exact)
    E_t(... E_1(e)) = e - B A (e - mean) + shift             (erasures: one affine map)

Pairs are put side by side, which changes no number. If the ranks add up to more than min(out, in),
the highest rank that a linear's matrix can have, the product is factored anew at that rank. So
however long the stack, a pair takes at most (1 + min / max) times as much as the dense update, and
PEFT still opens the files.

Erasures are always factored anew, in balanced factors. The product of two oblique projections may
have large entries that cancel out, and float32 would keep their rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import COMPACTION, AdapterFacts, code_version
from forgetting.adapter.low_rank import Adapter, AnyAdapter, from_files, to_files
from forgetting.adapter.stack import EffectiveState, effective_state, install, shared_copy
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone
from forgetting.models.targets import Pair

TOLERANCE = 1e-5
"""How far a logit may be off, divided by the largest logit if that is above 1."""
_NOTHING = 1e-12
"""Singular values below this share of the largest one are rounding errors."""


@dataclass(frozen=True)
class Compaction:
    """An adapter that replaces a stack, as read back from its files.

    Attributes:
        adapter: Served alone, on the bare backbone.
        files: Its files. The same stack gives the same bytes.
        rank: The highest rank of its pairs; 0 if it has none.
        bytes_before: Size of all files of the stack.
        difference: The largest difference of a logit on the probes, divided by the largest logit if
            that is above 1. At most `TOLERANCE`.
        probes: How many images it was measured on.
    """

    adapter: AnyAdapter
    files: Mapping[str, bytes]
    rank: int
    bytes_before: int
    difference: float
    probes: int


def compact(
    backbone: Backbone, stack: Sequence[AnyAdapter], *, stack_ids: Sequence[str], probes: Tensor
) -> Compaction:
    """Fold a stack into one adapter.

    Args:
        backbone: The bare backbone that the stack is for.
        stack: At least two adapters, bottom first.
        stack_ids: Their ids, in the same order.
        probes: Preprocessed images (n, c, h, w). Both must give the same answers to them.

    Raises:
        AdapterError: Fewer than two adapters, another number of ids, or outputs that differ by
            more than `TOLERANCE`.
        TargetError: The stack edits features, and the model has no place for that.
    """
    if len(stack) < 2:
        raise AdapterError(f"a stack of {len(stack)} has nothing to compact; it takes two adapters")
    if len(stack) != len(stack_ids):
        raise AdapterError(f"expected one id for each of {len(stack)} adapters, got {stack_ids}")
    files = to_files(_folded(backbone, stack, stack_ids))
    # Compare what will be served: the adapter read back from its files.
    adapter = from_files(files, backbone)
    difference = _difference(
        backbone,
        effective_state(backbone.model, stack),
        effective_state(backbone.model, [adapter]),
        probes,
    )
    if not difference <= TOLERANCE:
        raise AdapterError(
            f"the compacted adapter's logits differ by {difference:.1e} from those of the stack of "
            f"{len(stack)}, more than {TOLERANCE:g}; the stack stays as it is"
        )
    pairs = adapter.pairs.values() if isinstance(adapter, Adapter) else ()
    return Compaction(
        adapter=adapter,
        files=files,
        rank=max((len(a) for a, _ in pairs), default=0),
        bytes_before=sum(len(c) for one in stack for c in to_files(one).values()),
        difference=difference,
        probes=len(probes),
    )


def _folded(
    backbone: Backbone, stack: Sequence[AnyAdapter], stack_ids: Sequence[str]
) -> AnyAdapter:
    pairs: dict[str, list[Pair]] = {}
    for adapter in stack:
        if isinstance(adapter, Adapter):
            for path, pair in adapter.pairs.items():
                pairs.setdefault(path, []).append(pair)
    erasures = [adapter.erasure for adapter in stack if adapter.erasure is not None]
    erasure = _chain(erasures) if erasures else None
    facts = _facts(backbone, stack, stack_ids, groups=len({p.split(".mlp.")[0] for p in pairs}))
    if pairs:
        return Adapter({p: _side_by_side(some) for p, some in pairs.items()}, facts, erasure)
    if erasure is None:  # every adapter has pairs or an erasure
        raise AdapterError("the stack changes nothing")
    return EditAdapter(erasure, facts)


def _facts(
    backbone: Backbone, stack: Sequence[AnyAdapter], stack_ids: Sequence[str], *, groups: int
) -> AdapterFacts:
    subjects = [subject for adapter in stack for subject in adapter.facts.subjects]
    digests = [digest for adapter in stack for digest in adapter.facts.data_digest.split()]
    return AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=tuple(dict.fromkeys(subjects)),
        method=COMPACTION,
        config={"folds": " ".join(stack_ids)},
        seed=0,
        steps=0,
        data_digest=" ".join(dict.fromkeys(digests)),
        code_version=code_version(),
        groups_kept=groups,
        groups_total=max(adapter.facts.groups_total for adapter in stack),
    )


def _side_by_side(pairs: Sequence[Pair]) -> Pair:
    """The pairs of one linear as one pair, of rank min(out, in) at most."""
    a = torch.cat([a for a, _ in pairs])  # (r_1 + r_2 + ..., in)
    b = torch.cat([b for _, b in pairs], dim=1)  # (out, r_1 + r_2 + ...)
    if len(a) <= min(len(b), a.shape[1]):
        return a, b
    return _balanced(a.double(), b.double())


def _chain(erasures: Sequence[LowRankEdit]) -> LowRankEdit:
    """E_t(... E_1(e)) as one erasure, rounded only once."""
    first = erasures[0]
    if len(erasures) == 1:
        return first
    a, b, mean, shift = (t.double() for t in (first.a, first.b, first.mean, first.shift))
    for erasure in erasures[1:]:
        next_a, next_b = erasure.a.double(), erasure.b.double()
        # At e = mean the erasures below give mean + shift. This one starts from there.
        moved = next_a @ (mean + shift - erasure.mean.double())  # (k, d) @ (d,) -> (k,)
        shift = shift - next_b @ moved + erasure.shift.double()
        a = torch.cat([a, next_a - (next_a @ b) @ a])  # (k + k', d)
        b = torch.cat([b, next_b], dim=1)  # (d, k + k')
    a32, b32 = _balanced(a, b)
    return LowRankEdit(a32, b32, first.mean, shift.float())


def _balanced(a: Tensor, b: Tensor) -> Pair:
    """Factor B A anew: at its numerical rank, with factors of equal norm, in float32."""
    left, core_b = torch.linalg.qr(b)  # (out, r) -> (out, q), (q, r)
    right, core_a = torch.linalg.qr(a.T)  # (in, r) -> (in, p), (p, r)
    u, s, vt = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)  # (q, p)
    kept = max(1, int((s > _NOTHING * s[0]).sum()))
    root = s[:kept].sqrt()
    b_new = (left @ u[:, :kept]) * root  # (out, q) @ (q, kept)
    a_new = root[:, None] * (vt[:kept] @ right.T)  # (kept, p) @ (p, in)
    return a_new.float(), b_new.float()


@torch.inference_mode()
def _difference(
    backbone: Backbone, before: EffectiveState, after: EffectiveState, probes: Tensor
) -> float:
    logits = []
    for state in (before, after):
        model = shared_copy(backbone.model)
        install(model, state)
        logits.append(model(probes))
    scale = max(1.0, float(logits[0].abs().max()))
    return float((logits[0] - logits[1]).abs().max()) / scale
