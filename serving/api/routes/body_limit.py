"""Middleware that limits the size of every request's body, with or without a Content-Length."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.routes.problems import problem


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes; before reading it if it has a length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        words = f"The body is larger than {self._limit:,} bytes."
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await problem(413, words)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                # Raised where the application reads the body, so its handlers answer.
                raise HTTPException(413, words)
            return message

        await self._app(scope, counted, send)
