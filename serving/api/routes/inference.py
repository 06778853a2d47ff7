"""POST /v1/predict: takes one image and answers with the best labels."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import UploadFile

from serving.api.routes.answering import Begun, Replica
from serving.api.routes.problems import ProblemError
from serving.control.messages import Rejection
from serving.replica.admission import Call
from serving.replica.prediction import TOP_K, Guess, Prediction
from serving.replica.recognizer import Recognizer

router = APIRouter(tags=["inference"])

TopK = Annotated[int, Query(ge=1, le=1000, description="labels to return")]

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
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
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [{"label": "7", "probability": 0.998}],
                    "release": 3,
                    "request_id": "0f8fad5bd9cb469fa16570867728950e",
                }
            ]
        }
    )

    predictions: list[Label]
    release: int
    request_id: str
    before_mask: list[Label] | None = None
    """The labels that the weights alone give; only with the auditor's token."""


@router.post("/v1/predict", response_model=PredictResponse, openapi_extra=BODY)
async def predict(
    request: Request,
    replica: Replica,
    call: Begun,
    top_k: TopK = TOP_K,
    x_lethe_probe: Annotated[
        bool, Header(description="for auditors: keep this out of the shadow's sample")
    ] = False,
) -> Response:
    """Classify an image. Send it as the raw body, as multipart or as JSON base64."""
    started = time.perf_counter()
    data = await read_image(request, limit=replica.settings.limits.body_bytes)
    own = replace(call, probe=call.auditing and x_lethe_probe)
    return await answer(replica, data, own, started=started, top_k=top_k)


async def answer(
    replica: Recognizer, data: bytes, call: Call, *, started: float, top_k: int = TOP_K
) -> Response:
    """The response to one image. `started`: when the request came (perf_counter). Raises as
    `Recognizer.predict`, and `BusyError`."""
    with replica.admission.images(1):
        prediction = await replica.predict(data, call, top_k=top_k)
    return JSONResponse(
        answer_of(prediction),
        headers=release_headers(
            replica,
            prediction.release,
            prediction.parent,
            prediction.request_id,
            started,
            prediction.stages,
        ),
    )


def release_headers(
    replica: Recognizer,
    release: int,
    parent: int,
    request_id: str,
    started: float,
    stages: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, str]:
    """The headers of every answer: its release and replica, and how long it took.

    `started`: when the request came (perf_counter); `stages`: seconds by stage.
    """
    timing = {**stages, "total": time.perf_counter() - started}
    return {
        "X-Lethe-Release": str(release),
        "X-Lethe-Parent": str(parent),
        "X-Lethe-Request-Id": request_id,
        "X-Lethe-Replica": replica.name,
        "Server-Timing": ", ".join(f"{name};dur={s * 1000:.2f}" for name, s in timing.items()),
    }


def answer_of(prediction: Prediction) -> dict[str, Any]:
    body: dict[str, Any] = {
        "predictions": _labels(prediction.guesses),
        "release": prediction.release,
        "request_id": prediction.request_id,
    }
    if prediction.before_mask is not None:
        body["before_mask"] = _labels(prediction.before_mask)
    return body


def _labels(guesses: tuple[Guess, ...]) -> list[dict[str, Any]]:
    return [{"label": guess.label, "probability": guess.probability} for guess in guesses]


async def read_image(request: Request, *, limit: int) -> bytes:
    """The image's bytes from a raw, multipart or JSON body of at most `limit` bytes.

    Raises a problem: 413 for a body that is too large, 415 for another content type, 422 for a form
    or JSON without an image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limit)
    body = await read_body(request, limit=limit)
    if kind == "application/json":
        return _from_json(body)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body
    raise ProblemError(
        Rejection(
            415,
            f"The content type is {kind or 'missing'}.",
            "Send image/png or image/jpeg, multipart/form-data or application/json.",
        )
    )


async def read_body(request: Request, *, limit: int) -> bytes:
    """The whole body. Raises a 413 problem for one of more than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


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
