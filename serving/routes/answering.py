"""The replica behind an inference route, and why it may not answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from ray import serve

from serving.member import NotCurrentError, SuspendedError
from serving.replica import Recognizer
from serving.routes.problems import problem

SUSPENDED = (
    "Nothing is answered: an operator has suspended serving.",
    "It goes on after `lethe resume`; `lethe log` shows who suspended it and why.",
)
SUSPENDED_RETRY_S = 30


def recognizer() -> Recognizer:
    """The replica that this process serves."""
    replica: Recognizer = serve.get_replica_context().servable_object
    return replica


Replica = Annotated[Recognizer, Depends(recognizer)]


def suspension() -> Response:
    """What every request gets while serving is suspended."""
    return problem(503, *SUSPENDED, retry_after=str(SUSPENDED_RETRY_S))


def install(app: FastAPI) -> None:
    """Answer a replica's refusals with a problem."""

    @app.exception_handler(NotCurrentError)
    async def _not_current(_: Request, error: NotCurrentError) -> Response:
        return problem(503, f"Not answered: {error}.", "Ask again; another replica may answer.")

    @app.exception_handler(SuspendedError)
    async def _suspended(_: Request, error: SuspendedError) -> Response:
        return suspension()
