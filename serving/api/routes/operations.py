"""Operators' commands and questions. Every route needs the operator's token."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field, model_validator
from sse_starlette import EventSourceResponse

from serving.api.routes.access import AtDesk, Desk, operator_only
from serving.api.routes.job_events import event_stream
from serving.api.routes.problems import ProblemError
from serving.control.messages import (
    Answer,
    ForgetRequest,
    Images,
    Rejection,
    RestoreRequest,
    RetryRequest,
    RollbackRequest,
)
from serving.coordination.messages import Author
from serving.replica.decode import decode_image

router = APIRouter(prefix="/v1", tags=["operations"], dependencies=[Depends(operator_only)])

ACTOR = "operator"
IdempotencyKey = Annotated[
    str | None,
    Header(pattern=r"^[!-~]{1,128}$", description="a command with the same key again counts once"),
]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("the ledger takes printable characters on one line only")
    return text


Reason = Annotated[str, AfterValidator(_printable)]


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Reason = Field(
        "",
        max_length=500,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="why, on one line; it stands in the ledger for good, so name nobody",
        examples=["request 2026-114"],
    )


class ForgetCommand(_Command):
    classes: list[str] = Field(min_length=1, max_length=1000, examples=[["7"]])
    images: dict[str, list[Base64Bytes]] = Field(
        default_factory=dict,
        description="class -> images (base64) to train on, in addition to the data set's",
    )

    canary: int | None = Field(
        None, ge=1, le=99, description="percentage of requests to try the adapter on first"
    )
    batch: bool = Field(
        False, description="it may be trained as one task with others that allow it and wait"
    )

    @model_validator(mode="after")
    def _not_both(self) -> ForgetCommand:
        if self.batch and self.canary is not None:
            raise ValueError("name either canary or batch: a release on trial is trained alone")
        return self


class RollbackCommand(_Command):
    release: int = Field(ge=0, examples=[2])


class ReasonedCommand(_Command):
    reason: Reason = Field(
        min_length=1,
        max_length=500,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="why, on one line; it stands in the ledger for good, so name nobody",
        examples=["request 2026-114"],
    )


class RetryCommand(ReasonedCommand):
    images: dict[str, list[Base64Bytes]] = Field(
        default_factory=dict, description="class -> more images (base64) to train on"
    )


class RestoreCommand(ReasonedCommand):
    class_name: str | None = Field(None, alias="class", min_length=1, examples=["7"])
    subject: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")

    @model_validator(mode="after")
    def _one(self) -> RestoreCommand:
        if (self.class_name is None) == (self.subject is None):
            raise ValueError("name either a class or a subject")
        return self


@router.post("/forget", status_code=202)
async def forget(
    command: ForgetCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> Response:
    """Forget classes. When this answers, every replica masks them; then the training begins."""
    images = await _checked(command.images, desk)
    request = ForgetRequest(tuple(command.classes), images, command.canary, command.batch)
    job = _or_problem(await desk.control.forget(request, _author(command, idempotency_key)))
    return JSONResponse(job, 202, headers={"Location": f"/v1/jobs/{job['job']}"})


@router.get("/jobs/{job}")
async def job(job: str, desk: AtDesk) -> dict[str, Any]:
    """How far a forget command is."""
    return _or_problem(await desk.control.job(job))


@router.get("/jobs/{job}/report")
async def report(job: str, desk: AtDesk) -> Response:
    """The measured report of a forget command, as the ledger keeps it."""
    found = await desk.control.report(job)
    if isinstance(found, Rejection):
        raise ProblemError(found)
    return Response(found, media_type="application/json")


@router.get(
    "/jobs/{job}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(job: str, desk: AtDesk) -> Response:
    """The job as server-sent events: one `job` event for each change, `end` with the last."""
    first = _or_problem(await desk.control.job(job))
    return event_stream(desk.control, first)


@router.post("/jobs/{job}/cancel")
async def cancel(
    job: str, command: ReasonedCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Stop training a job. Its classes stay under erasure and masked on every replica."""
    return _or_problem(await desk.control.cancel(job, _author(command, idempotency_key)))


@router.post("/jobs/{job}/retry", status_code=202)
async def retry(
    job: str, command: RetryCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Train a refused or cancelled job again, with another seed and, if sent, more images."""
    request = RetryRequest(job, await _checked(command.images, desk))
    return _or_problem(await desk.control.retry(request, _author(command, idempotency_key)))


@router.get("/status")
async def status(desk: AtDesk) -> dict[str, Any]:
    """What is active, what is forgotten, and which release each replica runs."""
    return {**await desk.control.status(), "engine": desk.settings.engine.name}


@router.get("/releases")
async def releases(desk: AtDesk) -> dict[str, Any]:
    """Every release, oldest first."""
    return {"releases": await desk.control.releases()}


@router.post("/rollback")
async def rollback(
    command: RollbackCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Serve an earlier release's adapters again. What is under erasure stays masked."""
    return _or_problem(
        await desk.control.rollback(
            RollbackRequest(command.release), _author(command, idempotency_key)
        )
    )


@router.post("/restore")
async def restore(
    command: RestoreCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """End an erasure: the class is recognised again on every replica when this answers."""
    return _or_problem(
        await desk.control.restore(
            RestoreRequest(command.class_name, command.subject), _author(command, idempotency_key)
        )
    )


@router.post("/suspend")
async def suspend(
    command: ReasonedCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Stop all predictions. When this answers, no replica answers any until serving is resumed."""
    return _or_problem(await desk.control.suspend(_author(command, idempotency_key)))


@router.post("/resume")
async def resume(
    command: ReasonedCommand, desk: AtDesk, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Answer predictions again."""
    return _or_problem(await desk.control.resume(_author(command, idempotency_key)))


def _author(command: _Command, idempotency_key: str | None) -> Author:
    return Author(ACTOR, command.reason, idempotency_key or uuid.uuid4().hex)


async def _checked(images: Mapping[str, Sequence[bytes]], desk: Desk) -> Images:
    """The images. Raises `DecodeError` unless all can be decoded, so that no training fails later
    because of one."""
    for data in (data for given in images.values() for data in given):
        await asyncio.to_thread(decode_image, data, max_pixels=desk.settings.limits.pixels)
    return {name: tuple(given) for name, given in images.items()}


def _or_problem(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Rejection):
        raise ProblemError(answer)
    return answer
