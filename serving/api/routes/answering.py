"""What all inference routes share: the replica, a request's call, and the replica's refusals."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response
from ray import serve

from serving.api.routes.access import Authorization, shows
from serving.api.routes.problems import ProblemError, problem
from serving.control.messages import Rejection
from serving.replica.admission import (
    AskedError,
    BusyError,
    Call,
    DeadlineError,
    OtherReleaseError,
    StoppingError,
)
from serving.replica.decode import DecodeError
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.prediction import NoFeatureError
from serving.replica.recognizer import Recognizer
from serving.replica.slot import Ticket

LONGEST_MS = 600_000
SUSPENDED_RETRY_S = 30


def recognizer() -> Recognizer:
    """The replica in this process."""
    replica: Recognizer = serve.get_replica_context().servable_object
    return replica


async def replica_of_route() -> Recognizer:
    """`recognizer` for FastAPI. It is async because FastAPI calls other functions in a thread."""
    return recognizer()


Replica = Annotated[Recognizer, Depends(replica_of_route)]


async def begin(
    replica: Replica,
    x_lethe_min_release: Annotated[
        int | None, Header(ge=0, lt=2**63, description="oldest release that may answer")
    ] = None,
    x_lethe_deadline_ms: Annotated[
        int | None,
        Header(ge=1, le=LONGEST_MS, description="an image that waits longer is skipped"),
    ] = None,
    x_lethe_release: Annotated[
        int | None, Header(ge=0, lt=2**63, description="for auditors: the release that must answer")
    ] = None,
    authorization: Authorization = None,
) -> AsyncIterator[Call]:
    """The call of a request, from its headers. FastAPI ends it after the response was sent.

    Raises `StoppingError`, and a 401 problem if the request names a release without the auditor's
    token.
    """
    auditing = shows(authorization, replica.auditor_token)
    if x_lethe_release is not None and not auditing:
        raise ProblemError(
            Rejection(
                401,
                "To choose the release that answers, show the auditor's bearer token.",
                "The token is in LETHE_HOME/tokens/auditor on the machine that serves.",
            )
        )
    with begun(
        replica,
        deadline_ms=x_lethe_deadline_ms,
        min_release=x_lethe_min_release,
        release=x_lethe_release,
        auditing=auditing,
    ) as call:
        yield call


@contextlib.contextmanager
def begun(
    replica: Recognizer,
    *,
    deadline_ms: int | None = None,
    min_release: int | None = None,
    release: int | None = None,
    auditing: bool = False,
) -> Iterator[Call]:
    """Admit a request and hold its ticket while the block lasts. Raises `StoppingError`."""
    milliseconds = deadline_ms or replica.settings.limits.deadline_ms
    ticket = Ticket(replica.slot)
    with replica.admission.request():
        try:
            yield Call(
                uuid.uuid4().hex,
                ticket,
                deadline=asyncio.get_running_loop().time() + milliseconds / 1000,
                min_release=min_release,
                release=release,
                auditing=auditing,
            )
        finally:
            ticket.close()


Begun = Annotated[Call, Depends(begin)]

REFUSALS = (
    AskedError,
    BusyError,
    DeadlineError,
    DecodeError,
    NoFeatureError,
    NotCurrentError,
    OtherReleaseError,
    StoppingError,
    SuspendedError,
)


def rejection_of(error: Exception) -> Rejection:
    """The status and words for one of `REFUSALS`."""
    match error:
        case AskedError():
            return Rejection(error.status, f"{error}.", "`lethe releases` lists them.")
        case DecodeError():
            return Rejection(error.status, error.detail)
        case BusyError():
            return Rejection(429, "This replica is working on all it can take.", "Ask again later.")
        case DeadlineError():
            return Rejection(
                504,
                "The deadline passed before the image was computed, so it wasn't computed.",
                "X-Lethe-Deadline-Ms says how long a request may wait.",
            )
        case NoFeatureError():
            return Rejection(
                501,
                f"No embedding is handed out: {error}.",
                "Seal a release whose adapters have no feature edit, or ask /v1/predict.",
            )
        case OtherReleaseError():
            return Rejection(404, f"Not answered: {error}.", "Name that release, or none.")
        case StoppingError():
            return Rejection(503, "This server is stopping.", "Ask another one, or again later.")
        case SuspendedError():
            return Rejection(
                503,
                "Nothing is answered: an operator has suspended serving.",
                "`lethe resume` starts it again; `lethe log` shows who suspended it and why.",
            )
        case _:
            return Rejection(
                503, f"Not answered: {error}.", "Ask again; another replica may answer."
            )


def refusal(error: Exception) -> Response:
    """One of `REFUSALS` as a problem."""
    why = rejection_of(error)
    headers = {"retry_after": str(SUSPENDED_RETRY_S)} if isinstance(error, SuspendedError) else {}
    return problem(why.status, why.detail, why.advice, **headers)


def install(app: FastAPI) -> None:
    """Make `app` answer each of `REFUSALS` with a problem."""

    async def _refused(_: Request, error: Exception) -> Response:
        return refusal(error)

    for kind in REFUSALS:
        app.add_exception_handler(kind, _refused)
