"""A forget job as server-sent events (WHATWG HTML, 9.2): each change, until the job has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError
from sse_starlette import EventSourceResponse, ServerSentEvent

from serving.control.client import ControlClient
from serving.control.messages import Rejection
from serving.coordination.jobs import ENDED

POLL_S = 0.25
QUIET_S = 15.0
"""Seconds between comments: proxies and clients close connections that stay quiet."""
_NEWLINE = "\n"


def event_stream(control: ControlClient, first: dict[str, Any]) -> EventSourceResponse:
    """An event with `first`, then one for every change of that job. The stream waits while control
    restarts. The library sets the headers that keep proxies from caching or buffering it."""
    return EventSourceResponse(
        _changes(control, first), ping=QUIET_S, ping_message_factory=_comment, sep=_NEWLINE
    )


async def _changes(control: ControlClient, first: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
    view, told = first, ""
    while True:
        text = json.dumps(view)
        if text != told:
            ended = view["state"] in ENDED
            yield {"event": "end" if ended else "job", "data": text}
            if ended:
                return
            told = text
        await asyncio.sleep(POLL_S)
        try:
            answer = await control.job(first["job"])
        except RayError:
            continue
        if isinstance(answer, Rejection):  # the registry was replaced by another one
            return
        view = answer


def _comment() -> ServerSentEvent:
    return ServerSentEvent(comment="nothing new", sep=_NEWLINE)
