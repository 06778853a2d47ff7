"""The second kind of adapter: a closed-form edit of the feature, as a value and as files.

On disk it is two files: `projection.safetensors` with the tensors `A` (k, d), `B` (d, k), `mean`
(d,) and `shift` (d,), and `forget.json`. They are read as strictly as the trained kind.
`forgetting.erasure.leace` fits it, and `forgetting.erasure.edit` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from forgetting.adapter.files import (
    COMPACTION,
    FACTS_FILE,
    AdapterFacts,
    check_backbone,
    check_names,
    check_tensor,
    facts_bytes,
    read_facts,
    read_tensors,
    tensor_bytes,
)
from forgetting.erasure.edit import MAX_RANK, LowRankEdit, edit_point
from forgetting.errors import AdapterError, TargetError
from forgetting.models.backbone import Backbone

PROJECTION_FILE = "projection.safetensors"
FILES = (PROJECTION_FILE, FACTS_FILE)
KIND = "projection"
_KEYS = ("A", "B", "mean", "shift")
# A and B are each rounded to float32; their entries may be as large as the whitening's condition
# number.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class EditAdapter:
    """An erasure, float32 on the CPU, and its facts.

    Raises:
        AdapterError: Shapes, types or values are impossible, or B A isn't a projection.
    """

    erasure: LowRankEdit
    facts: AdapterFacts

    def __post_init__(self) -> None:
        check_erasure(self.erasure, self.facts)
        if self.facts.method != COMPACTION:  # two projections in a row aren't a projection
            _check_is_projection(self.erasure)


def edit_adapter_files(projection: EditAdapter) -> dict[str, bytes]:
    """The files. The same projection gives the same bytes."""
    return {
        PROJECTION_FILE: erasure_bytes(projection.erasure),
        FACTS_FILE: facts_bytes(KIND, projection.facts),
    }


def erasure_bytes(erasure: LowRankEdit) -> bytes:
    """The content of `projection.safetensors`."""
    tensors = (erasure.a, erasure.b, erasure.mean, erasure.shift)
    return tensor_bytes(dict(zip(_KEYS, tensors, strict=True)))


def read_erasure(content: bytes, backbone: Backbone) -> LowRankEdit:
    """The erasure in `projection.safetensors`, for features of this backbone's width.

    Raises:
        AdapterError: Keys, shapes, types or values are wrong, or the features can't be edited.
    """
    tensors = read_tensors(PROJECTION_FILE, content)
    check_names(f"keys of {PROJECTION_FILE}", expected=set(_KEYS), found=set(tensors))
    try:
        width = edit_point(backbone.model)
    except TargetError as error:
        raise AdapterError(str(error)) from error
    erasure = LowRankEdit(*(tensors[key] for key in _KEYS))
    check_erasure(erasure, None)
    if erasure.a.shape[1] != width:
        raise AdapterError(
            f"{PROJECTION_FILE}: the projection is for features of width {erasure.a.shape[1]}, the "
            f"backbone's have {width}"
        )
    return erasure


def edit_adapter_from_files(files: Mapping[str, bytes], backbone: Backbone) -> EditAdapter:
    """Read a projection for this backbone. `low_rank.from_files` calls this for its kind.

    Raises:
        AdapterError: See `low_rank.from_files`.
    """
    check_names("adapter files", expected=set(FILES), found=set(files))
    facts = read_facts(files[FACTS_FILE])
    check_backbone(facts, backbone.fingerprint)
    return EditAdapter(read_erasure(files[PROJECTION_FILE], backbone), facts)


def check_erasure(erasure: LowRankEdit, facts: AdapterFacts | None) -> None:
    """Raises `AdapterError` if shapes, types or values are impossible.

    Without `facts` any rank up to d passes. It is checked again when an adapter is made of it.
    """
    a, b = erasure.a, erasure.b
    if a.ndim != 2 or tuple(b.shape) != tuple(reversed(a.shape)):
        raise AdapterError(
            f"projection: expected A (k, d) and B (d, k), found {tuple(a.shape)}, {tuple(b.shape)}"
        )
    rank, width = a.shape
    for name, vector in (("mean", erasure.mean), ("shift", erasure.shift)):
        if tuple(vector.shape) != (width,):
            raise AdapterError(
                f"projection.{name}: expected shape ({width},), found {tuple(vector.shape)}"
            )
    any_rank = facts is None or facts.method == COMPACTION
    limit = width if any_rank else min(MAX_RANK, width - 1)
    if not 1 <= rank <= limit:
        raise AdapterError(f"projection: rank {rank} is not in 1..{limit}")
    for name in ("a", "b", "mean", "shift"):
        check_tensor(f"projection.{name}", getattr(erasure, name))


def _check_is_projection(erasure: LowRankEdit) -> None:
    """A closed form that was fitted once is a projection: A B = I."""
    rank = erasure.rank
    product = erasure.a.double() @ erasure.b.double()  # (k, d) @ (d, k) -> (k, k)
    error = float((product - torch.eye(rank, dtype=torch.float64)).abs().max())
    if error > _TOLERANCE:
        raise AdapterError(
            f"projection: A B differs from the identity by {error:.1e}, so B A is no projection"
        )
