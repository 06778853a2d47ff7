"""Answers errors as RFC 9457 problem details: what was wrong, and what to do."""

from __future__ import annotations

import http
import json
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from registry.errors import StoreError
from serving.control.messages import Rejection
from serving.errors import ServingError
from serving.replica.decode import DecodeError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class ProblemError(ServingError):
    """Ends a request with the status and words of `rejection`."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


class Problem(JSONResponse):
    """A problem response."""

    media_type = "application/problem+json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/v2"):
            # Clients of the Open Inference Protocol read the message from `error`.
            body = json.loads(bytes(self.body))
            self.body = self.render({**body, "error": body["detail"]})
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def problem(status: int, detail: str, advice: str = "", **headers: str) -> Problem:
    """A problem response. `headers` are given in snake case."""
    if status in (429, 503):
        headers.setdefault("retry_after", str(RETRY_AFTER_S))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Problem(problem_body(status, detail, advice), status, headers=named)


def problem_body(status: int, detail: str, advice: str = "") -> dict[str, object]:
    """The body of a problem response, or the problem in one line of a batch's answer."""
    title = http.HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return {**body, "advice": advice} if advice else body


def install(app: FastAPI) -> None:
    """Make `app` answer every error of its routes with a problem."""

    @app.exception_handler(ProblemError)
    async def _problem(_: Request, error: ProblemError) -> Response:
        rejection = error.rejection
        return problem(rejection.status, rejection.detail, rejection.advice)

    @app.exception_handler(DecodeError)
    async def _decode(_: Request, error: DecodeError) -> Response:
        return problem(error.status, error.detail)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        return problem(422, f"The request is not well formed: {wrong}.", "See /docs.")

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, error: ClientDisconnect) -> Response:
        # Only the metrics see this status: the client has gone.
        return problem(400, "The connection ended before the body did.")

    @app.exception_handler(RayTaskError)
    async def _failed(_: Request, error: RayTaskError) -> Response:
        cause = error.cause
        if isinstance(cause, RayError | StoreError):
            return _away_for(cause)
        log.error("control failed: %s", type(cause).__name__)
        return problem(
            500,
            f"Control could not do it ({type(cause).__name__}).",
            "What was acknowledged is safe. `lethe status` shows what is in effect.",
        )

    @app.exception_handler(RayError)
    @app.exception_handler(GetTimeoutError)
    async def _away(_: Request, error: Exception) -> Response:
        return _away_for(error)

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> Response:
        return problem(500, f"An error of ours ({type(error).__name__}); the log has the details.")


def _away_for(error: BaseException) -> Problem:
    return problem(
        503,
        f"The control process is restarting, or can't reach what it needs "
        f"({type(error).__name__}).",
        "What was acknowledged is safe. Send the command again with the same Idempotency-Key.",
    )
