"""A replica that also answers the Open Inference Protocol's gRPC methods. Serve's proxy calls them.

Errors are gRPC status codes. A client may send `x-lethe-min-release`, `x-lethe-deadline-ms` and
`authorization` as metadata; `x-lethe-release` comes back as trailing metadata.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from serving.api.inference_protocol import model as described
from serving.api.inference_protocol import rpc
from serving.api.inference_protocol.asking import (
    NoModelError,
    check_ready,
    infer,
    release_of,
    serving_release,
)
from serving.api.inference_protocol.tensors import ProtocolError
from serving.api.routes.access import shows
from serving.api.routes.answering import LONGEST_MS, REFUSALS, rejection_of
from serving.control.messages import Rejection
from serving.replica.admission import Call, StoppingError
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.recognizer import Recognizer
from serving.replica.slot import Ticket

CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
OUTCOMES = {503: "not_current", 504: "late"}


class GrpcRecognizer(Recognizer):
    """`Recognizer` with the methods of `rpc.METHODS`: each takes bytes and returns a message."""

    async def ServerLive(self, request: bytes) -> Message:
        return _say("ServerLiveResponse", live=True)

    async def ServerReady(self, request: bytes) -> Message:
        return _say("ServerReadyResponse", ready=self._is_ready())

    async def ServerMetadata(self, request: bytes) -> Message:
        return rpc.describe(described.server_metadata(), "ServerMetadataResponse")

    async def ModelReady(self, request: bytes, grpc_context: Any) -> Message:
        async def answer() -> Message:
            asked = rpc.parse("ModelReadyRequest", request)
            serving_release(self, asked.name, asked.version or None)
            return _say("ModelReadyResponse", ready=self._is_ready())

        return await self._answer("ModelReady", answer, grpc_context)

    async def ModelMetadata(self, request: bytes, grpc_context: Any) -> Message:
        async def answer() -> Message:
            asked = rpc.parse("ModelMetadataRequest", request)
            release = serving_release(self, asked.name, asked.version or None)
            metadata = described.model_metadata(release, len(self.classes), self.input_size)
            return rpc.describe(metadata, "ModelMetadataResponse")

        return await self._answer("ModelMetadata", answer, grpc_context)

    async def ModelInfer(self, request: bytes, grpc_context: Any) -> Message:
        async def answer() -> Message:
            limits = self.settings.limits
            if len(request) > limits.body_bytes:
                raise ProtocolError(f"the message is larger than {limits.body_bytes:,} bytes")
            asked = rpc.parse("ModelInferRequest", request)
            serving_release(self, asked.model_name, None)
            read = await asyncio.to_thread(rpc.read_request, asked, most=limits.images)
            call = self._call(asked.model_version, dict(grpc_context.invocation_metadata()))
            with self.admission.request():
                try:
                    found = await infer(self, read, call)
                finally:
                    call.ticket.close()
            grpc_context.set_trailing_metadata([("x-lethe-release", str(found.release))])
            return rpc.write_response(read, found.release, found.outputs)

        return await self._answer("ModelInfer", answer, grpc_context)

    def _is_ready(self) -> bool:
        try:
            check_ready(self)
        except (NotCurrentError, StoppingError, SuspendedError):
            return False
        return True

    def _call(self, version: str, metadata: dict[str, Any]) -> Call:
        milliseconds = _number(metadata, "x-lethe-deadline-ms", LONGEST_MS)
        wait_s = (milliseconds or self.settings.limits.deadline_ms) / 1000
        return Call(
            uuid.uuid4().hex,
            Ticket(self.slot),
            deadline=asyncio.get_running_loop().time() + wait_s,
            min_release=_number(metadata, "x-lethe-min-release", 2**63),
            release=release_of(version) if version else None,
            auditing=shows(metadata.get("authorization"), self.auditor_token),
        )

    async def _answer(
        self, method: str, answer: Callable[[], Awaitable[Message]], context: Any
    ) -> Message:
        """What `answer` returns; if it raises, an empty message and a gRPC status."""
        route, outcome = f"/{rpc.SERVICE}/{method}", "error"
        try:
            found = await answer()
            outcome = "ok"
            return found
        except (NoModelError, ProtocolError, *REFUSALS) as error:
            why = _rejection(error)
            outcome = OUTCOMES.get(why.status, "client_error")
            # Set and not raised, since Serve logs a stack trace for an error that is raised.
            context.set_code(CODES.get(why.status, grpc.StatusCode.INVALID_ARGUMENT))
            context.set_details(f"{why.detail} {why.advice}".strip())
            return _say(f"{method}Response")
        finally:
            self.metrics.count("lethe_requests_total", route, outcome)


def _rejection(error: Exception) -> Rejection:
    if isinstance(error, NoModelError):
        return Rejection(404, f"Not found: {error}.")
    if isinstance(error, ProtocolError):
        return Rejection(400, f"Not as the Open Inference Protocol has it: {error}.")
    return rejection_of(error)


def _number(metadata: dict[str, Any], name: str, most: int) -> int | None:
    text = str(metadata.get(name, ""))
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) > most:
        raise ProtocolError(f"the metadata {name} is {text[:64]!r}; it must be a whole number")
    return int(text)


def _say(name: str, **fields: bool) -> Message:
    said: Message = rpc.message(name)(**fields)
    return said
