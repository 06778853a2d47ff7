"""Who is calling: the replica behind a route, and the caller's bearer token."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Header
from ray import serve

from serving.home import Caller
from serving.jobs import Rejection
from serving.replica import Recognizer
from serving.routes.problems import ProblemError


def recognizer() -> Recognizer:
    """The replica that this process serves."""
    replica: Recognizer = serve.get_replica_context().servable_object
    return replica


Replica = Annotated[Recognizer, Depends(recognizer)]
Authorization = Annotated[str | None, Header(description="Bearer TOKEN")]


def holds(replica: Recognizer, caller: Caller, authorization: str | None) -> bool:
    """Whether the header carries `caller`'s token, compared in constant time."""
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        given.strip().encode(), replica.tokens[caller].encode()
    )


def operator_only(replica: Replica, authorization: Authorization = None) -> None:
    """Raises a 401 problem unless the operator's token is shown."""
    if not holds(replica, "operator", authorization):
        raise ProblemError(
            Rejection(
                401,
                "This needs the operator's bearer token.",
                "It stands in LETHE_HOME/tokens/operator on the machine that serves.",
            )
        )
