"""From a request of the protocol to its outputs, on a replica: the path of every interface."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from serving.api.inference_protocol.model import MODEL, InferRequest, answer, checked_pixels
from serving.api.inference_protocol.tensors import NamedTensor
from serving.errors import ServingError
from serving.replica.admission import Call, OtherReleaseError, StoppingError
from serving.replica.lease import NotCurrentError

if TYPE_CHECKING:
    from serving.replica.recognizer import Recognizer


class NoModelError(ServingError):
    """Another model than ours was asked for. HTTP 404."""


@dataclass(frozen=True)
class Inferred:
    outputs: tuple[NamedTensor, ...]
    release: int
    parent: int


def check_model(model: str) -> None:
    """Raises `NoModelError`."""
    if model != MODEL:
        raise NoModelError(f"there is no model {model[:64]!r}; there is {MODEL!r}")


def release_of(version: str) -> int:
    """A version is a release's number. Raises `OtherReleaseError` for what is none."""
    if not version.isascii() or not version.isdigit() or len(version) > 18:
        raise OtherReleaseError(f"{version[:64]!r} is no release's number")
    return int(version)


def serving_release(replica: Recognizer, model: str, version: str | None) -> int:
    """The number of the release that serves. Raises `NoModelError`, and `OtherReleaseError` where
    that is not the `version` that was asked for."""
    check_model(model)
    active = replica.slot.active
    if active is None:
        raise NotCurrentError("no release is active here yet")
    if version is not None and release_of(version) != active.number:
        raise OtherReleaseError(f"release {version} does not serve; release {active.number} does")
    return active.number


def check_ready(replica: Recognizer) -> int:
    """The release that would answer now. Raises `SuspendedError`, `StoppingError` and
    `NotCurrentError`."""
    if replica.admission.stopping:
        raise StoppingError
    replica.member.check()
    return serving_release(replica, MODEL, None)


async def infer(replica: Recognizer, request: InferRequest, call: Call) -> Inferred:
    """All images by one release. Raises as `Recognizer.score`, `ProtocolError`, `BusyError`."""
    with replica.admission.images(len(request.images)):
        scored = await replica.score(await _images(replica, request, call), call)
    masked = scored.masked.numpy()
    return Inferred(
        outputs=tuple(answer(masked, replica.classes, request.outputs)),
        release=scored.ready.number,
        parent=scored.ready.parent,
    )


async def _images(replica: Recognizer, request: InferRequest, call: Call) -> Tensor:
    """(B, C, H, W)."""
    if not isinstance(request.images, tuple):
        return torch.from_numpy(checked_pixels(request.images, replica.input_size))
    decoded = await asyncio.gather(*(replica.decode(data, call) for data in request.images))
    return torch.stack(decoded)
