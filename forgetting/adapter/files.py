"""What the files of every kind of adapter share: facts, strict JSON, strict tensors.

`forget.json` holds the facts and names the kind. Reading is strict, because a truncated or foreign
adapter would silently forget nothing. Every error names what isn't as expected.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from forgetting.erasure.edit import MAX_RANK
from forgetting.errors import AdapterError

FACTS_FILE = "forget.json"
COMPACTION = "compaction"
"""The `method` in the facts of an adapter that replaces a stack."""
_FORMAT = 1
_METADATA = {"format": "pt"}

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class AdapterFacts:
    """What `forget.json` says about an adapter. It names no class: subjects are opaque ids.

    Attributes:
        backbone: Fingerprint of the backbone that it was learned for.
        stack: Ids of the adapters below it, bottom first.
        subjects: Ids of the classes that it forgets.
        method: Name of the method.
        config: The method's hyper-parameters.
        seed: Seed of the run.
        steps: Optimizer steps taken.
        data_digest: Digest of the image set's manifest.
        code_version: Version of the code that learned it.
        groups_kept: Number of groups with a non-zero update. Only these are stored.
        groups_total: Number of groups in the backbone.
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


def code_version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version("lethe")
    except metadata.PackageNotFoundError:
        return "unknown"


def json_bytes(value: object) -> bytes:
    """JSON with sorted keys and no NaN: the same bytes for the same value."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def read_json(name: str, content: bytes) -> Any:
    """Parse JSON. Raises `AdapterError`, which names the file, if it isn't JSON."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise AdapterError(f"{name} is not JSON: {error}") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file. The same tensors give the same bytes."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(whole, _METADATA)
    return content


def read_tensors(name: str, content: bytes) -> dict[str, Tensor]:
    """Read a safetensors file. Raises `AdapterError` if it isn't whole or lacks our metadata."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except (safetensors.SafetensorError, struct.error, ValueError) as error:
        raise AdapterError(f"{name} is not a whole safetensors file: {error}") from error
    (length,) = struct.unpack("<Q", content[:8])
    found = json.loads(content[8 : 8 + length]).get("__metadata__")
    if found != _METADATA:
        raise AdapterError(f"{name}: expected metadata {_METADATA}, found {found}")
    return tensors


def facts_bytes(kind: str, facts: AdapterFacts) -> bytes:
    """The content of `forget.json`."""
    return json_bytes({"format": _FORMAT, "kind": kind, **asdict(facts)})


def read_kind(content: bytes) -> str:
    """The kind that `forget.json` names. Nothing else in it is checked.

    Raises:
        AdapterError: It isn't a JSON object, or it has another format.
    """
    raw = _read_object(content)
    if raw.get("format") != _FORMAT or not isinstance(raw.get("kind"), str):
        raise AdapterError(
            f"{FACTS_FILE}: expected format {_FORMAT} and a kind, found format "
            f"{raw.get('format')!r} and kind {raw.get('kind')!r}"
        )
    return str(raw["kind"])


def read_facts(content: bytes) -> AdapterFacts:
    """The facts in `forget.json`.

    Raises:
        AdapterError: A field is missing, unknown or of the wrong type.
    """
    raw = _read_object(content)
    names = {f.name for f in fields(AdapterFacts)}
    check_names(f"fields of {FACTS_FILE}", expected=names | {"format", "kind"}, found=set(raw))
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


def rank_limit(facts: AdapterFacts, *, full: int) -> int:
    """The highest rank that an adapter's pair or erasure may have.

    What one task learned has `MAX_RANK` at most. What replaces a stack may have the `full` rank of
    its matrix.
    """
    return full if facts.method == COMPACTION else MAX_RANK


def check_backbone(facts: AdapterFacts, fingerprint: str) -> None:
    """Raises `AdapterError` if the adapter was learned for another backbone."""
    if facts.backbone != fingerprint:
        raise AdapterError(
            f"{FACTS_FILE}: the adapter was learned for backbone {facts.backbone}, this one is "
            f"{fingerprint}"
        )


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises `AdapterError` unless the tensor is float32 and finite."""
    if tensor.dtype != torch.float32:
        raise AdapterError(f"{name}: expected float32, found {tensor.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterError(f"{name}: holds values that are not finite")


def check_names(what: str, *, expected: set[str], found: set[str]) -> None:
    """Raises `AdapterError`, which lists the missing and the unknown names, if there are any."""
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"missing {', '.join(missing[:5])}"] if missing else []
        parts += [f"unexpected {', '.join(extra[:5])}"] if extra else []
        raise AdapterError(f"{what}: {'; '.join(parts)}")


def _read_object(content: bytes) -> dict[str, Any]:
    raw = read_json(FACTS_FILE, content)
    if not isinstance(raw, dict):
        raise AdapterError(f"{FACTS_FILE}: expected an object, found {type(raw).__name__}")
    return raw
