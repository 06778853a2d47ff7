"""The routes of the Open Inference Protocol, version 2, over HTTP: `/v2`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import Response

from serving.api.inference_protocol import model as described
from serving.api.inference_protocol.asking import (
    NoModelError,
    check_model,
    check_ready,
    infer,
    release_of,
    serving_release,
)
from serving.api.inference_protocol.rest import HEADER, read_request, write_response
from serving.api.inference_protocol.tensors import ProtocolError
from serving.api.routes.answering import Begun, Replica
from serving.api.routes.inference import read_body, release_headers
from serving.api.routes.problems import ProblemError, problem
from serving.control.messages import Rejection
from serving.replica.admission import Call
from serving.replica.recognizer import Recognizer

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

JSON = "application/json"
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"enum": ["image", "pixels"]},
        "datatype": {"enum": ["BYTES", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array"},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                },
                "example": {
                    "inputs": [
                        {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["iVBORw0KG…"]}
                    ],
                    "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
HeaderLength = Annotated[
    int | None,
    Header(alias=HEADER, ge=0, lt=2**31, description="bytes of JSON; raw tensors follow"),
]


@router.get("")
async def server() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return described.server_metadata()


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """The server answers."""
    return {"live": True}


@router.get("/health/ready")
async def ready(replica: Replica) -> dict[str, bool]:
    """This replica holds a lease, so it can prove that it serves the current release."""
    check_ready(replica)
    return {"ready": True}


@router.get("/models/{model}")
async def model_metadata(model: str, replica: Replica) -> dict[str, Any]:
    """The model's inputs and outputs. Its version is the number of the active release."""
    return _metadata(replica, model, None)


@router.get("/models/{model}/versions/{version}")
async def version_metadata(model: str, version: str, replica: Replica) -> dict[str, Any]:
    """The model's inputs and outputs, if that release is the active one."""
    return _metadata(replica, model, version)


@router.get("/models/{model}/ready")
async def model_ready(model: str, replica: Replica) -> dict[str, Any]:
    """Whether the model is ready to infer."""
    return _ready(replica, model, None)


@router.get("/models/{model}/versions/{version}/ready")
async def version_ready(model: str, version: str, replica: Replica) -> dict[str, Any]:
    """Whether that release is the active one and ready to infer."""
    return _ready(replica, model, version)


@router.post("/models/{model}/infer", openapi_extra=_BODY)
async def model_infer(
    model: str, request: Request, replica: Replica, call: Begun, header_length: HeaderLength = None
) -> Response:
    """Classify images by the active release."""
    check_model(model)
    return await _infer(request, replica, call, header_length)


@router.post("/models/{model}/versions/{version}/infer", openapi_extra=_BODY)
async def version_infer(
    model: str,
    version: str,
    request: Request,
    replica: Replica,
    call: Begun,
    header_length: HeaderLength = None,
) -> Response:
    """Classify images by that release and no other."""
    check_model(model)
    pinned = replace(call, release=release_of(version))
    return await _infer(request, replica, pinned, header_length)


async def _infer(
    request: Request, replica: Recognizer, call: Call, header_length: int | None
) -> Response:
    started = time.perf_counter()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ProblemError(Rejection(415, "The body is compressed.", "Send it as it is."))
    limits = replica.settings.limits
    body = await read_body(request, limit=limits.body_bytes)
    asked = await asyncio.to_thread(read_request, body, header_length, most=limits.images)
    found = await infer(replica, asked, call)
    content, length = write_response(asked, found.release, found.outputs)
    headers = release_headers(replica, found.release, found.parent, call.request_id, started)
    if length is None:
        return Response(content, media_type=JSON, headers=headers)
    headers[HEADER] = str(length)
    return Response(content, media_type="application/octet-stream", headers=headers)


def _metadata(replica: Recognizer, model: str, version: str | None) -> dict[str, Any]:
    serving = serving_release(replica, model, version)
    return described.model_metadata(serving, len(replica.classes), replica.input_size)


def _ready(replica: Recognizer, model: str, version: str | None) -> dict[str, Any]:
    serving_release(replica, model, version)
    check_ready(replica)
    return {"name": model, "ready": True}


def install(app: FastAPI) -> None:
    """Make `app` answer the protocol's errors with a problem."""

    @app.exception_handler(ProtocolError)
    async def _malformed(_: Request, error: ProtocolError) -> Response:
        return problem(400, f"Not as the Open Inference Protocol has it: {error}.", "See /docs.")

    @app.exception_handler(NoModelError)
    async def _absent(_: Request, error: NoModelError) -> Response:
        return problem(404, f"Not found: {error}.")
