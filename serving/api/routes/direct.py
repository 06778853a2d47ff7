"""Answers POST /v1/predict without FastAPI when the request is only an image.

Most requests have no parameters. FastAPI's search for them took longer than everything else around
the model. So such a request skips FastAPI; the same functions answer it, and the same handlers
answer its errors. Requests with a query, an `X-Lethe-` header, a token, a form or JSON go through
FastAPI.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.routes import inference
from serving.api.routes.answering import begun, recognizer

PATH = "/v1/predict"
OURS = b"x-lethe-"


def is_plain(scope: Scope) -> bool:
    """Whether the request is an image to predict, without any parameter."""
    if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
        return False
    kinds = []
    for name, value in scope["headers"]:
        if name == b"content-type":
            kinds.append(value)
        elif name == b"authorization" or name.startswith(OURS):
            return False
    return not scope["query_string"] and len(kinds) == 1 and kinds[0].startswith(b"image/")


class Direct:
    """Middleware that answers plain requests and hands all others on."""

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Any]) -> None:
        """`handlers`: the application's exception handlers, by exception or status."""
        own = {kind: h for kind, h in handlers.items() if kind not in (500, Exception)}
        self._app = app
        self._answering = ExceptionMiddleware(_answer, handlers=own)
        (self._route,) = [r for r in inference.router.routes if getattr(r, "path", "") == PATH]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_plain(scope):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        await self._answering(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    started = time.perf_counter()
    replica = recognizer()
    with begun(replica) as call:
        limit = replica.settings.limits.body_bytes
        data = await inference.read_body(Request(scope, receive), limit=limit)
        response = await inference.answer(replica, data, call, started=started)
        await response(scope, receive, send)
