"""The adapter: the low-rank pairs that one forget task keeps, and what they add to the weights.

    W_t = W_0 + sum_i B_i A_i        (i over the stack of adapters, scale 1)

On disk an adapter is three files: `adapter_config.json` and `adapter_model.safetensors` in the
format of Hugging Face PEFT, and `forget.json` with our own facts. Loading is strict: a truncated
or foreign adapter would silently forget nothing. PEFT itself is not needed here.

Pairs may be trained together with an edit of the feature. Then the adapter has a fourth file,
`projection.safetensors`. An edit alone is an `EditAdapter`. `to_files` and `from_files` handle all
three kinds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.adapter.edit_adapter import KIND as EDIT_KIND
from forgetting.adapter.edit_adapter import (
    PROJECTION_FILE,
    EditAdapter,
    check_erasure,
    edit_adapter_files,
    edit_adapter_from_files,
    erasure_bytes,
    read_erasure,
)
from forgetting.adapter.files import (
    FACTS_FILE,
    AdapterFacts,
    check_backbone,
    check_names,
    check_tensor,
    facts_bytes,
    json_bytes,
    rank_limit,
    read_facts,
    read_json,
    read_kind,
    read_tensors,
    tensor_bytes,
)
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone
from forgetting.models.targets import Pair

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, TENSORS_FILE, FACTS_FILE)
_KIND = "lora"
_KIND_WITH_ERASURE = "lora+projection"
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class Adapter:
    """Pairs by module path: A (r, in) and B (out, r), float32 on the CPU, sorted by path.

    Attributes:
        pairs: The pairs of the groups that were kept.
        facts: Where the adapter comes from.
        erasure: An erasure that belongs to the pairs; None for pairs alone.

    Raises:
        AdapterError: There are no pairs, or a pair or the erasure has impossible shapes, types or
            values.
    """

    pairs: Mapping[str, Pair]
    facts: AdapterFacts
    erasure: LowRankEdit | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise AdapterError("an adapter without a single pair would forget nothing")
        for path, (a, b) in self.pairs.items():
            _check_pair(path, a, b, facts=self.facts)
        if self.erasure is not None:
            check_erasure(self.erasure, self.facts)
        ordered = {path: self.pairs[path] for path in sorted(self.pairs)}
        object.__setattr__(self, "pairs", MappingProxyType(ordered))


AnyAdapter = Adapter | EditAdapter
"""One element of a stack: trained pairs, a closed-form edit of the feature, or both in one."""


def delta(adapter: Adapter, path: str) -> Tensor:
    """BA for one linear, float32 (out, in)."""
    return _delta64(adapter.pairs[path]).float()


def effective_weights(model: nn.Module, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """W_0 + sum_i B_i A_i for every linear that some adapter changes.

    The sum starts from the bare weights, is computed in float64 and is rounded once. So no error
    adds up over a stack or over time.

    Args:
        model: The bare backbone model.
        adapters: The stack, bottom first.

    Returns:
        Float32 weights (out, in) by module path. The model isn't changed.
    """
    stacked: dict[str, list[Pair]] = {}
    for adapter in adapters:
        for path, pair in adapter.pairs.items():
            stacked.setdefault(path, []).append(pair)
    return {path: _merged(_weight(model, path), pairs) for path, pairs in stacked.items()}


def to_files(adapter: AnyAdapter) -> dict[str, bytes]:
    """The adapter's files. The same adapter gives the same bytes."""
    if isinstance(adapter, EditAdapter):
        return edit_adapter_files(adapter)
    tensors = {}
    for path, (a, b) in adapter.pairs.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = b
    kind = _KIND if adapter.erasure is None else _KIND_WITH_ERASURE
    files = {
        CONFIG_FILE: json_bytes(_peft_config(adapter)),
        TENSORS_FILE: tensor_bytes(tensors),
        FACTS_FILE: facts_bytes(kind, adapter.facts),
    }
    if adapter.erasure is not None:
        files[PROJECTION_FILE] = erasure_bytes(adapter.erasure)
    return files


def from_files(files: Mapping[str, bytes], backbone: Backbone) -> AnyAdapter:
    """Read an adapter of any kind for this backbone.

    Raises:
        AdapterError: The kind is unknown; a file or tensor is missing or unknown; a tensor doesn't
            fit the backbone, isn't float32 or isn't finite; a rank is above `MAX_RANK`; the
            adapter is for another backbone; the PEFT config contradicts the tensors; or the
            backbone's features can't be edited. The message names the file or key.
    """
    if FACTS_FILE not in files:
        raise AdapterError(f"adapter files: missing {FACTS_FILE}")
    kind = read_kind(files[FACTS_FILE])
    if kind == EDIT_KIND:
        return edit_adapter_from_files(files, backbone)
    if kind == _KIND:
        check_names("adapter files", expected=set(FILES), found=set(files))
        return _pairs_from_files(files, backbone, erasure=None)
    if kind == _KIND_WITH_ERASURE:
        check_names("adapter files", expected={*FILES, PROJECTION_FILE}, found=set(files))
        erasure = read_erasure(files[PROJECTION_FILE], backbone)
        return _pairs_from_files(files, backbone, erasure=erasure)
    known = ", ".join((_KIND, _KIND_WITH_ERASURE, EDIT_KIND))
    raise AdapterError(f"{FACTS_FILE}: expected one of the kinds {known}, found {kind!r}")


def _pairs_from_files(
    files: Mapping[str, bytes], backbone: Backbone, *, erasure: LowRankEdit | None
) -> Adapter:
    facts = read_facts(files[FACTS_FILE])
    check_backbone(facts, backbone.fingerprint)
    config = read_json(CONFIG_FILE, files[CONFIG_FILE])
    paths = config.get("target_modules") if isinstance(config, dict) else None
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths) or not paths:
        raise AdapterError(f"{CONFIG_FILE}: expected a list of module paths in `target_modules`")
    tensors = read_tensors(TENSORS_FILE, files[TENSORS_FILE])
    keys = {f"{_PREFIX}{p}.lora_{m}.weight" for p in paths for m in "AB"}
    check_names(f"keys of {TENSORS_FILE}", expected=keys, found=set(tensors))
    pairs = {
        p: (tensors[f"{_PREFIX}{p}.lora_A.weight"], tensors[f"{_PREFIX}{p}.lora_B.weight"])
        for p in paths
    }
    for path, (a, b) in pairs.items():
        weight = _weight(backbone.model, path)
        if (b.shape[0], a.shape[-1]) != tuple(weight.shape):
            raise AdapterError(
                f"{path}: B A has shape {(b.shape[0], a.shape[-1])}, the backbone's weight has "
                f"{tuple(weight.shape)}"
            )
    adapter = Adapter(pairs=pairs, facts=facts, erasure=erasure)
    if config != _peft_config(adapter):
        raise AdapterError(
            f"{CONFIG_FILE} contradicts {TENSORS_FILE} or {FACTS_FILE}: expected "
            f"{json.dumps(_peft_config(adapter), sort_keys=True)}"
        )
    return adapter


def _merged(weight: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """W_0 + [B_1 ... B_t] [A_1; ...; A_t]: one product for the whole stack."""
    a = torch.cat([a for a, _ in pairs]).double()  # (sum r, in)
    b = torch.cat([b for _, b in pairs], dim=1).double()  # (out, sum r)
    # (out, in) + (out, sum r) @ (sum r, in)
    return torch.addmm(weight.detach().double().cpu(), b, a).float()


def _delta64(pair: Pair) -> Tensor:
    a, b = pair
    return b.double() @ a.double()  # (out, r) @ (r, in) -> (out, in)


def _weight(model: nn.Module, path: str) -> Tensor:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise AdapterError(f"{path}: the backbone has no such module") from error
    if not isinstance(module, nn.Linear):
        raise AdapterError(f"{path}: expected a linear, the backbone has {type(module).__name__}")
    return module.weight


def _check_pair(path: str, a: Tensor, b: Tensor, *, facts: AdapterFacts) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{path}: expected A (r, in) and B (out, r), found {tuple(a.shape)}, {tuple(b.shape)}"
        )
    limit = rank_limit(facts, full=min(b.shape[0], a.shape[1]))
    if not 1 <= a.shape[0] <= limit:
        raise AdapterError(f"{path}: rank {a.shape[0]} is not in 1..{limit}")
    for name, tensor in (("lora_A", a), ("lora_B", b)):
        check_tensor(f"{path}.{name}", tensor)


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """PEFT's config. `lora_alpha == r` everywhere, so that PEFT's scale alpha / r is 1."""
    ranks = {path: int(a.shape[0]) for path, (a, _) in adapter.pairs.items()}
    rank = max(ranks.values())
    other = {path: r for path, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.facts.backbone,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": other,
        "alpha_pattern": other,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
