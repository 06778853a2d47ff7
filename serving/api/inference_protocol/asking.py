"""Answers a request of the protocol with `Recognizer.score`, as every other interface does."""

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
    """The request names a model that isn't served here. HTTP 404."""


@dataclass(frozen=True)
class Inferred:
    """The answer to a request, and the release that gave it."""

    outputs: tuple[NamedTensor, ...]
    release: int
    parent: int


def check_model(model: str) -> None:
    """Raises `NoModelError` unless `model` is the served one."""
    if model != MODEL:
        raise NoModelError(f"there is no model {model[:64]!r}; there is {MODEL!r}")


def release_of(version: str) -> int:
    """The release that a version names: its number. Raises `OtherReleaseError` if it is not a
    number."""
    if not version.isascii() or not version.isdigit() or len(version) > 18:
        raise OtherReleaseError(f"{version[:64]!r} is no release's number")
    return int(version)


def serving_release(replica: Recognizer, model: str, version: str | None) -> int:
    """The number of the active release. Raises `NoModelError`, `OtherReleaseError` if `version`
    names another release, and `NotCurrentError` before the first."""
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
    """Answer all images of `request` by one release. Raises as `Recognizer.score`, and
    `ProtocolError` and `BusyError`."""
    with replica.admission.images(len(request.images)):
        scored = await replica.score(await _images(replica, request, call), call)
    masked = scored.masked.numpy()
    return Inferred(
        outputs=tuple(answer(masked, replica.classes, request.outputs)),
        release=scored.ready.number,
        parent=scored.ready.parent,
    )


async def _images(replica: Recognizer, request: InferRequest, call: Call) -> Tensor:
    """The request's images, decoded and pre-processed: (B, C, H, W)."""
    if not isinstance(request.images, tuple):
        return torch.from_numpy(checked_pixels(request.images, replica.input_size))
    decoded = await asyncio.gather(*(replica.decode(data, call) for data in request.images))
    return torch.stack(decoded)
