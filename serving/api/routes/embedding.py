"""POST /v1/embed: takes one image and answers with its feature, as JSON or as raw numbers."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from serving.api.routes.answering import Begun, Replica
from serving.api.routes.inference import BODY, read_image, release_headers
from serving.api.routes.problems import ProblemError
from serving.control.messages import Rejection
from serving.replica.prediction import Embedding

router = APIRouter(tags=["inference"])

JSON, BINARY = "application/json", "application/octet-stream"
DIM, SPACE, MASKED_ONLY = "X-Lethe-Dim", "X-Lethe-Space", "X-Lethe-Masked-Only"

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The feature; `Accept` chooses the form. Raw: X-Lethe-Dim numbers, float32, "
        "little-endian. The headers say the same in both forms.",
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Lethe-Release": {
                "description": "the release that made the vector; if it isn't that of your "
                "gallery, look at X-Lethe-Space",
                "schema": {"type": "integer"},
            },
            SPACE: {
                "description": "names backbone and adapters; enrol again when it changes",
                "schema": {"type": "string"},
            },
            MASKED_ONLY: {
                "description": "classes that the release masks and its weights still know; a mask "
                "hides nothing in a vector",
                "schema": {"type": "integer"},
            },
            DIM: {"description": "length of the vector", "schema": {"type": "integer"}},
        },
    },
    501: {"description": "A problem: this backbone has no embedding that may be handed out."},
}


class EmbedResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "embedding": [0.6, 0.0, -0.8],
                    "dim": 3,
                    "release": 3,
                    "space": "5f1c0a7be2d94c11",
                    "masked_only": 0,
                    "request_id": "0f8fad5bd9cb469fa16570867728950e",
                }
            ]
        }
    )

    embedding: list[float]
    dim: int
    release: int
    space: str
    masked_only: int
    request_id: str


@router.post("/v1/embed", response_model=EmbedResponse, responses=_ANSWERS, openapi_extra=BODY)
async def embed(request: Request, replica: Replica, call: Begun) -> Response:
    """The L2-normalised feature of an image, from the release in force. Send the image as for
    /v1/predict."""
    started = time.perf_counter()
    binary = wants_binary(request.headers.get("accept", ""))
    data = await read_image(request, limit=replica.settings.limits.body_bytes)
    with replica.admission.images(1):
        made = await replica.embed(data, call)
    headers = {
        **release_headers(
            replica, made.release, made.parent, made.request_id, started, made.stages
        ),
        SPACE: made.space,
        MASKED_ONLY: str(made.masked_only),
        DIM: str(len(made.vector)),
        "Vary": "Accept",
    }
    if binary:
        numbers = made.vector.numpy().astype("<f4").tobytes()
        return Response(numbers, headers=headers, media_type=BINARY)
    return JSONResponse(answer_of(made), headers=headers)


def answer_of(made: Embedding) -> dict[str, Any]:
    """The JSON of an embedding."""
    return {
        "embedding": made.vector.tolist(),
        "dim": len(made.vector),
        "release": made.release,
        "space": made.space,
        "masked_only": made.masked_only,
        "request_id": made.request_id,
    }


def wants_binary(accept: str) -> bool:
    """Whether an Accept header prefers raw numbers to JSON (RFC 9110, 12.5.1).

    Raises a 406 problem for one that accepts neither.
    """
    shares = {JSON: 0.0, BINARY: 0.0}
    exact = {JSON: -1, BINARY: -1}
    for part in (accept or "*/*").split(","):
        kind, _, rest = part.partition(";")
        kind, share = kind.strip().lower(), _share(rest)
        for own in shares:
            ranges = ("*/*", "application/*", own)
            if kind in ranges and ranges.index(kind) > exact[own]:
                exact[own] = ranges.index(kind)
                shares[own] = share
    if not any(shares.values()):
        raise ProblemError(
            Rejection(
                406,
                "None of the types that the request accepts is offered.",
                f"Accept {JSON} or {BINARY}.",
            )
        )
    return shares[BINARY] > shares[JSON]


def _share(parameters: str) -> float:
    """The weight `q` among a media range's parameters: 1 if it isn't there or isn't a number."""
    for each in parameters.split(";"):
        name, _, value = each.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0
