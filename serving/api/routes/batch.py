"""POST /v1/predict/batch: takes many images, and answers a line for each as soon as it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from serving.api.routes.answering import REFUSALS, Begun, Replica, rejection_of
from serving.api.routes.inference import TopK, answer_of
from serving.api.routes.problems import ProblemError, problem_body
from serving.control.messages import Rejection
from serving.replica.admission import Call
from serving.replica.decode import DecodeError
from serving.replica.prediction import TOP_K, Prediction
from serving.replica.recognizer import Recognizer
from serving.replica.slot import Ticket

router = APIRouter(tags=["inference"])

NDJSON = "application/x-ndjson"
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": _FILES},
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "One JSON object a line: `index` and what /v1/predict answers, or "
            "`index` and `problem`.",
            "content": {NDJSON: {"example": '{"index": 0, "predictions": [], "release": 3}'}},
        }
    },
}


@dataclass(frozen=True)
class _Image:
    """One image being computed. Its ticket is held until its line was sent."""

    call: Call
    answer: asyncio.Task[Prediction]

    def end(self) -> None:
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # retrieved, or asyncio would log it
        self.call.ticket.close()


async def hold() -> AsyncIterator[contextlib.ExitStack]:
    """What a request holds until its last line was sent or its client has gone."""
    with contextlib.ExitStack() as held:
        yield held


@router.post("/v1/predict/batch", response_class=StreamingResponse, openapi_extra=_BODY)
async def predict_batch(
    request: Request,
    replica: Replica,
    call: Begun,
    held: Annotated[contextlib.ExitStack, Depends(hold)],
    top_k: TopK = TOP_K,
) -> StreamingResponse:
    """Classify each image of a form. Each line names the release that answered it."""
    files = await _read_files(request, replica)
    held.enter_context(replica.admission.images(len(files)))
    images = []
    for data in files:
        own = replace(call, ticket=Ticket(replica.slot))
        images.append(_Image(own, asyncio.create_task(replica.predict(data, own, top_k=top_k))))
        held.callback(images[-1].end)
    await asyncio.wait([images[0].answer])
    failed = images[0].answer.exception()
    if failed is not None and not isinstance(failed, DecodeError):
        raise failed  # the replica can't answer at all: the whole request fails, with that status
    return StreamingResponse(_lines(replica, images), media_type=NDJSON)


async def _lines(replica: Recognizer, images: Sequence[_Image]) -> AsyncIterator[bytes]:
    for index, image in enumerate(images):
        try:
            prediction = await image.answer
            replica.member.check()  # the answer may have waited for earlier lines
            line = {"index": index, **answer_of(prediction)}
        except REFUSALS as error:
            why = rejection_of(error)
            line = {"index": index, "problem": problem_body(why.status, why.detail, why.advice)}
        yield json.dumps(line).encode() + b"\n"
        image.call.ticket.close()


async def _read_files(request: Request, replica: Recognizer) -> list[bytes]:
    """The form's files. Raises a problem if there are none or too many."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ProblemError(
            Rejection(415, f"The content type is {kind or 'missing'}.", "Send multipart/form-data.")
        )
    most = replica.settings.limits.images
    async with request.form(max_files=most, max_fields=8) as form:
        uploads = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not uploads:
            raise ProblemError(
                Rejection(422, "The form has no file.", f"Add up to {most}, each named `images`.")
            )
        return [await upload.read() for upload in uploads]
