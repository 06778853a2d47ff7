"""A forget job as server-sent events (WHATWG HTML, 9.2): each change, until the job has ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray.exceptions import RayError

from serving.control.client import ControlClient
from serving.control.messages import Rejection
from serving.coordination.jobs import ENDED

POLL_S = 0.25
QUIET_S = 15.0
"""Seconds after which a comment is sent: proxies and clients close connections that stay quiet."""


async def job_events(
    control: ControlClient,
    first: dict[str, Any],
    *,
    poll: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[str]:
    """Event-stream text: `first`, then every change of that job. While
    control's process restarts the stream waits."""
    view, told, said = first, "", clock()
    while True:
        text = json.dumps(view)
        if text != told:
            ended = view["state"] in ENDED
            yield f"event: {'end' if ended else 'job'}\ndata: {text}\n\n"
            if ended:
                return
            told, said = text, clock()
        elif clock() - said >= QUIET_S:
            yield ": nothing new\n\n"
            said = clock()
        await asyncio.sleep(poll)
        try:
            answer = await control.job(first["job"])
        except RayError:
            continue
        if isinstance(answer, Rejection):  # the registry was replaced by another one
            return
        view = answer
