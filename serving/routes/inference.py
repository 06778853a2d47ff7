"""POST /v1/predict: one image in, the best labels out."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from serving.jobs import Rejection
from serving.replica import Guess
from serving.routes.access import Authorization, shows
from serving.routes.answering import Replica
from serving.routes.problems import ProblemError
from serving.slot import Ticket

router = APIRouter(tags=["inference"])

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _IMAGE,
            "image/jpeg": _IMAGE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "byte"}},
                },
                "example": {"image": "iVBORw0KGgo…"},
            },
        },
    }
}


class Label(BaseModel):
    label: str
    probability: float


class PredictResponse(BaseModel):
    predictions: list[Label]
    release: int
    request_id: str
    before_mask: list[Label] | None = None
    """What the weights alone say; only the auditor is told."""


async def hold_ticket(replica: Replica) -> AsyncIterator[Ticket]:
    """A ticket that is closed after the response was sent."""
    ticket = Ticket(replica.slot)
    try:
        yield ticket
    finally:
        ticket.close()


@router.post("/v1/predict", response_model=PredictResponse, openapi_extra=_BODY)
async def predict(
    request: Request,
    replica: Replica,
    ticket: Annotated[Ticket, Depends(hold_ticket)],
    top_k: Annotated[int, Query(ge=1, le=1000, description="labels to return")] = 5,
    authorization: Authorization = None,
    x_lethe_min_release: Annotated[
        int | None, Header(ge=0, description="oldest release that may answer")
    ] = None,
    x_lethe_probe: Annotated[
        bool, Header(description="the auditor's alone: keep this out of the shadow's sample")
    ] = False,
) -> Response:
    """Name what an image shows. Send the image as the raw body, as multipart or as JSON base64."""
    started = time.perf_counter()
    data = await read_image(request, limit=replica.settings.limits.body_bytes)
    auditing = shows(authorization, replica.auditor_token)
    prediction = await replica.predict(
        data,
        ticket,
        top_k=top_k,
        min_release=x_lethe_min_release,
        probe=auditing and x_lethe_probe,
    )
    body: dict[str, Any] = {
        "predictions": _labels(prediction.guesses),
        "release": prediction.release,
        "request_id": prediction.request_id,
    }
    if auditing:
        body["before_mask"] = _labels(prediction.before_mask)
    return JSONResponse(
        body,
        headers={
            "X-Lethe-Release": str(prediction.release),
            "X-Lethe-Parent": str(prediction.parent),
            "X-Lethe-Request-Id": prediction.request_id,
            "X-Lethe-Replica": replica.name,
            "Server-Timing": f"total;dur={(time.perf_counter() - started) * 1000:.2f}",
        },
    )


def _labels(guesses: tuple[Guess, ...]) -> list[dict[str, Any]]:
    return [{"label": guess.label, "probability": guess.probability} for guess in guesses]


async def read_image(request: Request, *, limit: int) -> bytes:
    """The image's bytes out of a raw, multipart or JSON body of at most `limit` bytes.

    Raises a problem: 413 too large, 415 another content type, 400 or 422 not well formed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    if kind == "application/json":
        return _from_json(bytes(body))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return bytes(body)
    raise ProblemError(
        Rejection(
            415,
            f"The content type is {kind or 'missing'}.",
            "Send image/png or image/jpeg, multipart/form-data or application/json.",
        )
    )


async def _from_form(request: Request, limit: int) -> bytes:
    async with request.form(max_files=1, max_fields=8) as form:
        upload = next((part for part in form.values() if isinstance(part, UploadFile)), None)
        if upload is None:
            raise ProblemError(Rejection(422, "The form has no file.", "Add one named `image`."))
        data = await upload.read(limit + 1)
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _from_json(body: bytes) -> bytes:
    try:
        parsed = json.loads(body)
        return base64.b64decode(parsed["image"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
        raise ProblemError(
            Rejection(422, "The JSON body is not as expected.", 'Send {"image": "<base64>"}.')
        ) from None


def _too_large(limit: int) -> ProblemError:
    return ProblemError(Rejection(413, f"The body is larger than {limit:,} bytes."))
