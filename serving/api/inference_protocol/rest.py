"""The protocol's REST bodies: JSON, followed by raw tensors (binary tensor data extension)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serving.api.inference_protocol.model import MODEL, InferRequest, Wanted, request_of
from serving.api.inference_protocol.tensors import (
    NamedTensor,
    ProtocolError,
    from_json,
    from_raw,
    to_json,
    to_raw,
)

HEADER = "Inference-Header-Content-Length"


def read_request(body: bytes, header_length: int | None, *, most: int) -> InferRequest:
    """The request in `body`: JSON of `header_length` bytes (None: all of it), then the raw inputs.

    `most`: largest number of images. Raises `ProtocolError`.
    """
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise ProtocolError(f"{HEADER} is {end}, the body has {len(body)} bytes")
    try:
        asked = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise ProtocolError("the body is not JSON") from None
    if not isinstance(asked, Mapping):
        raise ProtocolError("the body must be a JSON object")
    raw = memoryview(body)[end:]
    inputs = []
    for each in _objects(asked, "inputs"):
        given, raw = _input(each, raw)
        inputs.append(given)
    if raw:
        raise ProtocolError(f"{len(raw)} bytes follow the last input")
    binary = _parameters(asked).get("binary_data_output") is True
    outputs = [_wanted(each, binary) for each in _objects(asked, "outputs")]
    request = request_of(_text(asked.get("id", ""), "id"), inputs, outputs, most=most)
    if outputs or not binary:
        return request
    raws = tuple(Wanted(each.name, binary=True) for each in request.outputs)
    return InferRequest(request.id, request.images, raws)


def write_response(
    request: InferRequest, release: int, outputs: Sequence[NamedTensor]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON in bytes; None if no raw tensors follow it."""
    described, raws = [], []
    for wanted, tensor in zip(request.outputs, outputs, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if wanted.binary:
            raws.append(to_raw(tensor))
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            entry["data"] = to_json(tensor)
        described.append(entry)
    said: dict[str, Any] = {"model_name": MODEL, "model_version": str(release)}
    if request.id:
        said["id"] = request.id
    header = json.dumps({**said, "outputs": described}).encode()
    return header + b"".join(raws), len(header) if raws else None


def _input(given: Mapping[str, Any], raw: memoryview) -> tuple[NamedTensor, memoryview]:
    """One input, and the raw bytes that are left for the others."""
    name = _text(given.get("name"), "an input's name")
    described = name, given.get("datatype"), given.get("shape")
    size = _parameters(given).get("binary_data_size")
    if size is None:
        return from_json(*described, given.get("data")), raw
    if type(size) is not int or not 0 <= size <= len(raw):
        raise ProtocolError(
            f"input {name!r}: binary_data_size is {size!r}, {len(raw)} bytes are left"
        )
    return from_raw(*described, bytes(raw[:size])), raw[size:]


def _wanted(given: Mapping[str, Any], binary: bool) -> Wanted:
    parameters = _parameters(given)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise ProtocolError(f"classification is {classes!r}; it is how many classes to return")
    raw = parameters.get("binary_data", binary)
    return Wanted(_text(given.get("name"), "an output's name"), classes, raw is True)


def _objects(given: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ProtocolError(f"`{name}` must be a list of objects")
    return found


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found = given.get("parameters", {})
    if not isinstance(found, Mapping):
        raise ProtocolError("`parameters` must be an object")
    return found


def _text(given: object, what: str) -> str:
    if not isinstance(given, str) or len(given) > 256:
        raise ProtocolError(f"{what} must be a string of up to 256 characters")
    return given
