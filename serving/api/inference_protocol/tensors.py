"""Reads and writes the protocol's tensors as JSON and as raw bytes. Only FP32 and BYTES are known.

Raw FP32 is little-endian and row-major; raw BYTES has a 4-byte little-endian length before each
element. In JSON, an incoming element of BYTES is base64, because it is a file; an outgoing one is
text.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ServingError

DATATYPES = ("FP32", "BYTES")
LARGEST_RANK = 4

Floats = NDArray[np.float32]


class ProtocolError(ServingError):
    """A request breaks the protocol's rules; the message says where. HTTP 400."""


@dataclass(frozen=True)
class NamedTensor:
    """`data`: an array of `shape` for FP32, the elements in row-major order for BYTES."""

    name: str
    shape: tuple[int, ...]
    data: Floats | tuple[bytes, ...]

    @property
    def datatype(self) -> str:
        return "BYTES" if isinstance(self.data, tuple) else "FP32"


def floats(name: str, data: Floats) -> NamedTensor:
    return NamedTensor(name, data.shape, data)


def checked_shape(name: str, datatype: object, shape: object) -> tuple[int, ...]:
    """`shape` as a tuple. Raises `ProtocolError` for a datatype or shape that isn't supported."""
    if datatype not in DATATYPES:
        raise ProtocolError(f"input {name!r} has the datatype {datatype!r}; {DATATYPES} are taken")
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > LARGEST_RANK:
        raise ProtocolError(f"input {name!r}: `shape` must be a list of up to {LARGEST_RANK} sizes")
    if any(type(size) is not int or size < 1 for size in shape) or not shape:
        raise ProtocolError(f"input {name!r} has the shape {list(shape)}; sizes are 1 or more")
    return tuple(shape)


def from_raw(name: str, datatype: object, shape: object, raw: bytes) -> NamedTensor:
    """The tensor in `raw`. Raises `ProtocolError` unless it holds exactly `shape`'s elements."""
    sizes = checked_shape(name, datatype, shape)
    count = math.prod(sizes)
    if datatype == "FP32":
        if len(raw) != 4 * count:
            raise ProtocolError(
                f"input {name!r} has {len(raw)} bytes; {list(sizes)} of FP32 has {4 * count}"
            )
        return floats(name, np.frombuffer(raw, "<f4").astype(np.float32).reshape(sizes))
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ProtocolError(f"input {name!r} ends within an element's length")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise ProtocolError(f"input {name!r} ends within an element")
        elements.append(raw[at - length : at])
    return from_elements(name, sizes, tuple(elements))


def from_json(name: str, datatype: object, shape: object, data: object) -> NamedTensor:
    """The tensor in `data`, flat or nested. Raises `ProtocolError` unless `data` holds exactly the
    elements of `shape`."""
    sizes = checked_shape(name, datatype, shape)
    if datatype == "FP32":
        try:
            array = np.asarray(data)
        except ValueError:
            raise ProtocolError(f"input {name!r}: the lists of `data` differ in length") from None
        if array.dtype.kind not in "iuf":
            raise ProtocolError(f"input {name!r}: `data` must hold numbers")
        if array.size != math.prod(sizes):
            raise ProtocolError(
                f"input {name!r} has {array.size} numbers; {list(sizes)} has {math.prod(sizes)}"
            )
        with np.errstate(over="ignore"):  # `checked_pixels` refuses infinite numbers
            return floats(name, array.astype(np.float32).reshape(sizes))
    try:
        elements = tuple(base64.b64decode(each, validate=True) for each in _flat(data))
    except (binascii.Error, ValueError, TypeError):
        raise ProtocolError(f"input {name!r}: `data` must hold strings of base64") from None
    return from_elements(name, sizes, elements)


def _flat(data: object) -> list[Any]:
    """The elements of a list, or of a list of lists (for shape [B, 1])."""
    if not isinstance(data, list):
        raise TypeError
    return [each for row in data for each in (row if isinstance(row, list) else [row])]


def from_elements(name: str, shape: tuple[int, ...], elements: tuple[bytes, ...]) -> NamedTensor:
    """A tensor of BYTES. Raises `ProtocolError` unless `shape` has as many elements."""
    if len(elements) != math.prod(shape):
        raise ProtocolError(
            f"input {name!r} has {len(elements)} elements; {list(shape)} has {math.prod(shape)}"
        )
    return NamedTensor(name, shape, elements)


def to_raw(tensor: NamedTensor) -> bytes:
    if isinstance(tensor.data, tuple):
        return b"".join(struct.pack("<I", len(each)) + each for each in tensor.data)
    return tensor.data.astype("<f4").tobytes()


def to_json(tensor: NamedTensor) -> list[Any]:
    """The elements as a flat list, as the protocol recommends for servers."""
    if isinstance(tensor.data, tuple):
        return [each.decode() for each in tensor.data]
    flat: list[Any] = tensor.data.reshape(-1).tolist()
    return flat
