"""The adapter: the low-rank pairs that survived one forget task, and what they add to the weights.

    W_t = W_0 + sum_i B_i A_i        (i over the stack of adapters, scale 1)

On disk an adapter is three files: `adapter_config.json` and `adapter_model.safetensors` in the
format of Hugging Face PEFT, and `forget.json` with our own facts. Loading is strict: a truncated
or foreign adapter would silently forget nothing. PEFT itself is not needed here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from forgetting.backbone import Backbone
from forgetting.errors import AdapterError
from forgetting.method import Pair

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
FACTS_FILE = "forget.json"
FILES = (CONFIG_FILE, TENSORS_FILE, FACTS_FILE)
MAX_RANK = 128
_FORMAT = 1
_KIND = "lora"
_PREFIX = "base_model.model."
_METADATA = {"format": "pt"}


Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class AdapterFacts:
    """What `forget.json` says about an adapter. No class names: subjects are opaque ids.

    Attributes:
        backbone: Fingerprint of the backbone that it was learned against.
        stack: Ids of the adapters below it, bottom first.
        subjects: Ids of the classes that it forgets.
        method: Name of the method.
        config: The method's hyper-parameters.
        seed: Seed of the run.
        steps: Optimizer steps taken.
        data_digest: Digest of the image set's manifest.
        code_version: Version of the code that learned it.
        groups_kept: Groups with a non-zero update; only these are stored.
        groups_total: Groups that the backbone has.
    """

    backbone: str
    stack: tuple[str, ...]
    subjects: tuple[str, ...]
    method: str
    config: Mapping[str, Scalar]
    seed: int
    steps: int
    data_digest: str
    code_version: str
    groups_kept: int
    groups_total: int


@dataclass(frozen=True, eq=False)
class Adapter:
    """Pairs by module path: A (r, in) and B (out, r), float32 on the CPU, sorted by path.

    Raises:
        AdapterError: No pairs, or a pair whose shapes, type or values can't be right.
    """

    pairs: Mapping[str, Pair]
    facts: AdapterFacts

    def __post_init__(self) -> None:
        if not self.pairs:
            raise AdapterError("an adapter without a single pair would forget nothing")
        for path, (a, b) in self.pairs.items():
            _check_pair(path, a, b)
        ordered = {path: self.pairs[path] for path in sorted(self.pairs)}
        object.__setattr__(self, "pairs", MappingProxyType(ordered))


def code_version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version("lethe")
    except metadata.PackageNotFoundError:
        return "unknown"


def delta(adapter: Adapter, path: str) -> Tensor:
    """BA for one linear, float32 (out, in)."""
    return _delta64(adapter.pairs[path]).float()


def effective_weights(model: nn.Module, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """W_0 + sum_i B_i A_i for every linear that some adapter changes.

    The sum is taken in float64 in the order of the stack and rounded once, so that the result
    doesn't depend on how often or in how many steps it was computed.

    Args:
        model: The bare backbone model.
        adapters: The stack, bottom first.

    Returns:
        Float32 weights (out, in) by module path; the model is left as it is.
    """
    sums: dict[str, Tensor] = {}
    for adapter in adapters:
        for path, pair in adapter.pairs.items():
            if path not in sums:
                sums[path] = _weight(model, path).detach().double().cpu()
            sums[path] = sums[path] + _delta64(pair)
    return {path: weight.float() for path, weight in sums.items()}


def to_files(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's files, byte for byte the same for the same adapter."""
    tensors = {}
    for path, (a, b) in adapter.pairs.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = b.contiguous()
    facts = {"format": _FORMAT, "kind": _KIND, **asdict(adapter.facts)}
    return {
        CONFIG_FILE: _json(_peft_config(adapter)),
        TENSORS_FILE: safetensors.torch.save(tensors, _METADATA),
        FACTS_FILE: _json(facts),
    }


def from_files(files: Mapping[str, bytes], backbone: Backbone) -> Adapter:
    """Read an adapter for this backbone, refusing whatever isn't exactly one.

    Raises:
        AdapterError: Naming the file or key: a file missing or too many, a tensor missing or too
            many, a shape that doesn't fit the backbone, not float32, not finite, rank above
            `MAX_RANK`, another backbone's fingerprint, or a PEFT config that contradicts the
            tensors.
    """
    _check_names("adapter files", expected=set(FILES), found=set(files))
    facts = _read_facts(files[FACTS_FILE])
    if facts.backbone != backbone.fingerprint:
        raise AdapterError(
            f"{FACTS_FILE}: the adapter was learned for backbone {facts.backbone}, this one is "
            f"{backbone.fingerprint}"
        )
    config = _read_json(CONFIG_FILE, files[CONFIG_FILE])
    paths = config.get("target_modules") if isinstance(config, dict) else None
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths) or not paths:
        raise AdapterError(f"{CONFIG_FILE}: expected a list of module paths in `target_modules`")
    tensors = _read_tensors(files[TENSORS_FILE])
    keys = {f"{_PREFIX}{p}.lora_{m}.weight" for p in paths for m in "AB"}
    _check_names(f"keys of {TENSORS_FILE}", expected=keys, found=set(tensors))
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
    adapter = Adapter(pairs=pairs, facts=facts)
    if config != _peft_config(adapter):
        raise AdapterError(
            f"{CONFIG_FILE} contradicts {TENSORS_FILE} or {FACTS_FILE}: expected "
            f"{json.dumps(_peft_config(adapter), sort_keys=True)}"
        )
    return adapter


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


def _check_pair(path: str, a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{path}: expected A (r, in) and B (out, r), found {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if not 1 <= a.shape[0] <= MAX_RANK:
        raise AdapterError(f"{path}: rank {a.shape[0]} is not in 1..{MAX_RANK}")
    for name, tensor in (("lora_A", a), ("lora_B", b)):
        if tensor.dtype != torch.float32:
            raise AdapterError(f"{path}.{name}: expected float32, found {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{path}.{name}: holds values that are not finite")


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """`lora_alpha == r` everywhere, so that PEFT's scale alpha / r is 1."""
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


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _read_json(name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise AdapterError(f"{name} is not JSON: {error}") from error


def _read_tensors(content: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (safetensors.SafetensorError, struct.error, ValueError) as error:
        raise AdapterError(f"{TENSORS_FILE} is not a whole safetensors file: {error}") from error
    (length,) = struct.unpack("<Q", content[:8])
    found = json.loads(content[8 : 8 + length]).get("__metadata__")
    if found != _METADATA:
        raise AdapterError(f"{TENSORS_FILE}: expected metadata {_METADATA}, found {found}")
    return tensors


def _read_facts(content: bytes) -> AdapterFacts:
    raw = _read_json(FACTS_FILE, content)
    names = {f.name for f in fields(AdapterFacts)}
    if not isinstance(raw, dict):
        raise AdapterError(f"{FACTS_FILE}: expected an object, found {type(raw).__name__}")
    _check_names(f"fields of {FACTS_FILE}", expected=names | {"format", "kind"}, found=set(raw))
    if raw["format"] != _FORMAT or raw["kind"] != _KIND:
        raise AdapterError(
            f"{FACTS_FILE}: expected format {_FORMAT} and kind {_KIND!r}, found "
            f"{raw['format']!r} and {raw['kind']!r}"
        )
    text = ("backbone", "method", "data_digest", "code_version")
    number = ("seed", "steps", "groups_kept", "groups_total")
    lists = ("stack", "subjects")
    wrong = [n for n in text if not isinstance(raw[n], str)]
    wrong += [n for n in number if type(raw[n]) is not int]
    wrong += [
        n
        for n in lists
        if not isinstance(raw[n], list) or not all(isinstance(v, str) for v in raw[n])
    ]
    if not isinstance(raw["config"], dict):
        wrong.append("config")
    if wrong:
        raise AdapterError(f"{FACTS_FILE}: fields of the wrong kind: {', '.join(sorted(wrong))}")
    return AdapterFacts(
        backbone=raw["backbone"],
        stack=tuple(raw["stack"]),
        subjects=tuple(raw["subjects"]),
        method=raw["method"],
        config=raw["config"],
        seed=raw["seed"],
        steps=raw["steps"],
        data_digest=raw["data_digest"],
        code_version=raw["code_version"],
        groups_kept=raw["groups_kept"],
        groups_total=raw["groups_total"],
    )


def _check_names(what: str, *, expected: set[str], found: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"missing {', '.join(missing[:5])}"] if missing else []
        parts += [f"unexpected {', '.join(extra[:5])}"] if extra else []
        raise AdapterError(f"{what}: {'; '.join(parts)}")
