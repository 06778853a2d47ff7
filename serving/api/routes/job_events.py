"""A forget job as server-sent events (WHATWG HTML, 9.2): what changed, until it has ended."""

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
"""Proxies and clients close connections on which nothing comes, so a comment is sent this often."""
_NEWLINE = "\n"


def event_stream(control: ControlClient, first: dict[str, Any]) -> EventSourceResponse:
    """`first`, then every change of that job. While control's process restarts the stream waits.

    No proxy keeps the answer or holds any of it back (the library sets the headers for that).
    """
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
        if isinstance(answer, Rejection):  # another registry was put in its place
            return
        view = answer


def _comment() -> ServerSentEvent:
    return ServerSentEvent(comment="nothing new", sep=_NEWLINE)
