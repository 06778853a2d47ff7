"""Checks bearer tokens, and holds what the operators' routes work with."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from serving.api.routes.problems import ProblemError
from serving.config.settings import Settings
from serving.control.client import ControlClient
from serving.control.messages import Rejection
from serving.monitoring.client import AsyncMonitorClient


@dataclass(frozen=True)
class Desk:
    """What operators' routes work with. It has no replica, so that a frozen one delays no
    command."""

    settings: Settings
    classes: tuple[str, ...]
    token: str
    """The operator's."""
    control: ControlClient
    monitor: AsyncMonitorClient


def desk_of(request: Request) -> Desk:
    """The desk that this process's application was built with."""
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(desk_of)]
Authorization = Annotated[str | None, Header(description="Bearer TOKEN")]


def shows(authorization: str | None, token: str) -> bool:
    """Whether the header carries `token`, compared in constant time."""
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        given.strip().encode(), token.encode()
    )


def operator_only(desk: AtDesk, authorization: Authorization = None) -> None:
    """Raises a 401 problem unless the operator's token is shown."""
    if not shows(authorization, desk.token):
        raise ProblemError(
            Rejection(
                401,
                "This needs the operator's bearer token.",
                "The token is in LETHE_HOME/tokens/operator on the machine that serves.",
            )
        )
