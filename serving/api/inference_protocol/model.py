"""The served model as the protocol sees it: its inputs, outputs and metadata.

Inputs, one of: `image` BYTES [B] or [B, 1], image files; `pixels` FP32 [B, C, H, W], pre-processed.
Outputs, all after the mask: `probabilities` FP32 [B, K], `logits` FP32 [B, K] (the lowest finite
number for masked classes), `label` BYTES [B]. With the classification extension an output of
numbers becomes BYTES [B, k] of "value:index:label", best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.api.inference_protocol.tensors import Floats, NamedTensor, ProtocolError, floats

MODEL = "lethe"
VERSION = "0.1.0"
EXTENSIONS = ["binary_tensor_data", "classification"]
OUTPUTS = ("probabilities", "logits", "label")
LOWEST = float(np.finfo(np.float32).min)
DEFAULT_OUTPUTS = ("probabilities", "label")


@dataclass(frozen=True)
class Wanted:
    """One output that the client asks for.

    `classes`: how many classes to return by the classification extension; 0: it is not used.
    Raises `ProtocolError` for an unknown output, or for classes of `label`.
    """

    name: str
    classes: int = 0
    binary: bool = False

    def __post_init__(self) -> None:
        if self.name not in OUTPUTS:
            raise ProtocolError(f"there is no output {self.name!r}; there are {', '.join(OUTPUTS)}")
        if self.classes and self.name == "label":
            raise ProtocolError("the output 'label' holds no numbers to classify by")


@dataclass(frozen=True)
class InferRequest:
    """A request, from either transport."""

    id: str
    images: tuple[bytes, ...] | Floats
    """Image files, or pixels (B, C, H, W)."""
    outputs: tuple[Wanted, ...]


def request_of(
    id: str, inputs: Sequence[NamedTensor], outputs: Sequence[Wanted], *, most: int
) -> InferRequest:
    """The request with these inputs and outputs.

    Raises `ProtocolError` unless there is one input that the model takes, with at most `most`
    images, and no output is named twice.
    """
    if len(inputs) != 1 or inputs[0].name not in ("image", "pixels"):
        names = ", ".join(repr(each.name) for each in inputs) or "none"
        raise ProtocolError(f"the inputs are {names}; send either 'image' or 'pixels'")
    given = inputs[0]
    if given.shape[0] > most:
        raise ProtocolError(f"{given.shape[0]} images in one request; {most} are taken")
    takes = ("BYTES", "[B]") if given.name == "image" else ("FP32", "[B, C, H, W]")
    fits = given.shape[1:] in ((), (1,)) if given.name == "image" else len(given.shape) == 4
    if given.datatype != takes[0] or not fits:
        raise ProtocolError(
            f"input {given.name!r} is {given.datatype} {list(given.shape)}; it must be "
            f"{takes[0]} {takes[1]}"
        )
    asked = [each.name for each in outputs]
    if len(set(asked)) < len(asked):
        raise ProtocolError(f"the outputs are {', '.join(asked[:4])}; name each of them once")
    wanted = tuple(outputs) or tuple(Wanted(name) for name in DEFAULT_OUTPUTS)
    return InferRequest(id, given.data, wanted)


def checked_pixels(pixels: Floats, input_size: tuple[int, int, int]) -> Floats:
    """`pixels` (B, C, H, W). Raises `ProtocolError` unless all are finite and the size is the
    model's."""
    if pixels.shape[1:] != tuple(input_size):
        raise ProtocolError(
            f"input 'pixels' has images of {list(pixels.shape[1:])}; the model takes "
            f"{list(input_size)}"
        )
    if not np.isfinite(pixels).all():
        raise ProtocolError("input 'pixels' has numbers that are not finite")
    return pixels


def answer(masked: Floats, classes: Sequence[str], wanted: Sequence[Wanted]) -> list[NamedTensor]:
    """The outputs, from the masked logits (B, K), which are minus infinity for masked classes."""
    return [_output(masked, classes, each) for each in wanted]


def _output(masked: Floats, classes: Sequence[str], wanted: Wanted) -> NamedTensor:
    if wanted.name == "label":
        best = tuple(classes[i].encode() for i in masked.argmax(-1))
        return NamedTensor("label", (len(best),), best)
    numbers = _softmax(masked) if wanted.name == "probabilities" else masked
    if not wanted.classes:
        return floats(wanted.name, np.nan_to_num(numbers, neginf=LOWEST))
    open_to_all = int(np.isfinite(masked).all(0).sum())
    top = masked.argsort(-1)[:, ::-1][:, : min(wanted.classes, open_to_all)]  # (B, k)
    rows = tuple(
        f"{values[i]:.6f}:{i}:{classes[i]}".encode()
        for values, best in zip(numbers, top, strict=True)
        for i in best
    )
    return NamedTensor(wanted.name, (len(top), top.shape[1]), rows)


def _softmax(logits: Floats) -> Floats:
    """(B, K) -> (B, K); each row adds up to 1."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Floats = (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return shares


def server_metadata() -> dict[str, Any]:
    return {"name": MODEL, "version": VERSION, "extensions": EXTENSIONS}


def model_metadata(release: int, classes: int, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """The model's metadata. `classes`: how many the head has."""
    return {
        "name": MODEL,
        "versions": [str(release)],
        "platform": "lethe",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "FP32", "shape": [-1, *input_size]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }
