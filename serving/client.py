"""HTTP clients, with one method for each route: `InferenceClient` for predictions, `Client` for
operators' commands. The CLI uses them."""

from __future__ import annotations

import base64
import json
import mimetypes
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource, SSEError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_fixed,
)

from serving.coordination.jobs import ENDED
from serving.errors import ServingError

POLL_S = 0.3
TRIES = 8
RETRY_S = 1.0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BROKE_OFF = retry_if_exception_type(httpx.HTTPError) & retry_if_not_exception_type(
    httpx.ConnectError
)
_BUSY = retry_if_result(lambda response: response.status_code == 503)


class ClientError(ServingError):
    """The server answered with an error or can't be reached; the message is for a person."""


@dataclass(frozen=True)
class Embedding:
    """The L2-normalised feature of an image. Keep it together with its `space` and `release`."""

    vector: tuple[float, ...] = field(repr=False)
    """Length 1; the cosine of two vectors is their dot product."""
    space: str
    """Names the weights that made it. Vectors of different spaces can't be compared."""
    masked_only: int
    """Classes under erasure that the weights still know. A mask hides nothing in a vector."""
    release: int
    parent: int
    request_id: str


class _Connection:
    """A connection to one listener of a server."""

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 60.0) -> None:
        """`timeout`: seconds for each request. Raises `ClientError` if `url` is not a URL."""
        if not url.startswith(("http://", "https://")):
            raise ClientError(f"{url!r} is no URL of a server; expected http://HOST:PORT")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=url, headers=headers, timeout=timeout, trust_env=False
            )
        except httpx.InvalidURL as error:
            raise ClientError(f"{url!r} is no URL of a server: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def metrics(self) -> str:
        return self._answer("GET", "/metrics").text

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._answer(method, path, **request)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError:
            raise self._another() from None
        return answer

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        # Only questions and commands with an idempotency key may be sent again.
        again = method == "GET" or "Idempotency-Key" in request.get("headers", {})
        asking = Retrying(
            retry=_BROKE_OFF | _BUSY,
            wait=wait_fixed(RETRY_S),
            stop=stop_after_attempt(TRIES if again else 1),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        try:
            response: httpx.Response = asking(self._http.request, method, path, **request)
        except httpx.ConnectError:
            raise self._absent() from None
        except httpx.HTTPError as error:
            raise ClientError(f"{method} {path} got no answer: {error!r}") from None
        if response.is_error:
            raise ClientError(_sentence(response))
        return response

    @contextmanager
    def _stream(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        """The answer, whose body the caller reads as it arrives."""
        try:
            with self._http.stream(method, path, **request) as response:
                if response.is_error:
                    response.read()
                    raise ClientError(_sentence(response))
                yield response
        except httpx.ConnectError:
            raise self._absent() from None
        except SSEError:
            raise self._another() from None
        except httpx.HTTPError as error:
            raise ClientError(f"the answer to {method} {path} broke off: {error!r}") from None

    def _absent(self) -> ClientError:
        return ClientError(f"nothing answers at {self._http.base_url}: is `lethe serve` running?")

    def _another(self) -> ClientError:
        return ClientError(f"{self._http.base_url} is not a Lethe server")


class InferenceClient(_Connection):
    """Asks for predictions and embeddings. With the auditor's `token`, predictions also have
    `before_mask`."""

    def predict(self, image: bytes, *, content_type: str, top_k: int = 5) -> dict[str, Any]:
        return self._ask(
            "POST",
            "/v1/predict",
            content=image,
            headers={"Content-Type": content_type},
            params={"top_k": top_k},
        )

    def predict_file(self, path: Path, *, top_k: int = 5) -> dict[str, Any]:
        """Raises `ClientError` when the file can't be read."""
        data, kind = _read_file(path)
        return self.predict(data, content_type=kind, top_k=top_k)

    def embed(self, image: bytes, *, content_type: str) -> Embedding:
        response = self._answer(
            "POST",
            "/v1/embed",
            content=image,
            headers={"Content-Type": content_type, "Accept": "application/octet-stream"},
        )
        said = response.headers
        try:
            return Embedding(
                vector=struct.unpack(f"<{int(said['X-Lethe-Dim'])}f", response.content),
                space=said["X-Lethe-Space"],
                masked_only=int(said["X-Lethe-Masked-Only"]),
                release=int(said["X-Lethe-Release"]),
                parent=int(said["X-Lethe-Parent"]),
                request_id=said["X-Lethe-Request-Id"],
            )
        except (KeyError, ValueError, struct.error):
            raise self._another() from None

    def embed_file(self, path: Path) -> Embedding:
        """Raises `ClientError` when the file can't be read."""
        data, kind = _read_file(path)
        return self.embed(data, content_type=kind)

    def predict_batch(self, images: Sequence[bytes], *, top_k: int = 5) -> Iterator[dict[str, Any]]:
        """The answer of /v1/predict for each image, in order, as it arrives. An image that could
        not be answered has `problem` instead."""
        files = [("images", (str(index), image)) for index, image in enumerate(images)]
        request = {"files": files, "params": {"top_k": top_k}}
        with self._stream("POST", "/v1/predict/batch", **request) as response:
            for line in response.iter_lines():
                yield json.loads(line)

    def ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False


class Client(_Connection):
    """Sends commands and questions to a server's operator API. `token`: the operator's."""

    def forget(
        self,
        classes: Sequence[str],
        *,
        reason: str = "",
        key: str | None = None,
        images: Mapping[str, Sequence[bytes]] | None = None,
        canary: int | None = None,
        batch: bool = False,
    ) -> dict[str, Any]:
        """Forget classes. When this returns, every replica masks them. Returns the job's view.

        If the connection breaks, the command is sent again with the same idempotency key.

        Args:
            key: The idempotency key; made here unless given.
            images: Class -> image files to train on, in addition to the server's data set.
            canary: Percentage of requests that the adapter is tried on first.
            batch: The job may be trained as one task with others that allow it and wait.
        """
        body: dict[str, Any] = {"classes": list(classes), "reason": reason}
        if canary is not None:
            body["canary"] = canary
        if batch:
            body["batch"] = True
        if images:
            body["images"] = _encoded(images)
        return self._command("/v1/forget", body, key)

    def rollback(self, release: int, *, reason: str = "", key: str | None = None) -> dict[str, Any]:
        return self._command("/v1/rollback", {"release": release, "reason": reason}, key)

    def restore(
        self,
        class_name: str | None = None,
        *,
        subject: str | None = None,
        reason: str,
        key: str | None = None,
    ) -> dict[str, Any]:
        """End the erasure of a class, or of a subject by its id, and serve it again."""
        whom = {"class": class_name} if class_name is not None else {"subject": subject}
        return self._command("/v1/restore", {**whom, "reason": reason}, key)

    def cancel(self, job: str, *, reason: str, key: str | None = None) -> dict[str, Any]:
        """Stop training a job; its classes stay masked and under erasure."""
        return self._command(f"/v1/jobs/{job}/cancel", {"reason": reason}, key)

    def retry(
        self,
        job: str,
        *,
        reason: str,
        key: str | None = None,
        images: Mapping[str, Sequence[bytes]] | None = None,
    ) -> dict[str, Any]:
        """Train a refused or cancelled job again. `images`: class -> more image files."""
        body: dict[str, Any] = {"reason": reason}
        if images:
            body["images"] = _encoded(images)
        return self._command(f"/v1/jobs/{job}/retry", body, key)

    def suspend(self, *, reason: str, key: str | None = None) -> dict[str, Any]:
        """Stop all predictions. When this returns, no replica answers any."""
        return self._command("/v1/suspend", {"reason": reason}, key)

    def resume(self, *, reason: str, key: str | None = None) -> dict[str, Any]:
        return self._command("/v1/resume", {"reason": reason}, key)

    def job(self, job: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/jobs/{job}")

    def report(self, job: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/jobs/{job}/report")

    def status(self) -> dict[str, Any]:
        return self._ask("GET", "/v1/status")

    def releases(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._ask("GET", "/v1/releases")["releases"]
        return rows

    def watch(self, job: str) -> Iterator[dict[str, Any]]:
        """The job's view, asked for again and again until the job has ended."""
        while True:
            view = self.job(job)
            yield view
            if view["state"] in ENDED:
                return
            time.sleep(POLL_S)

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        """The job's view at each change until the job has ended, as the server pushes it."""
        with self._stream("GET", f"/v1/jobs/{job}/events", timeout=None) as response:
            for event in EventSource(response).iter_sse():
                yield event.json()

    def wait(
        self, job: str, note: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> dict[str, Any]:
        """Wait until the job has ended; return its view. `note` is called with each view."""
        view: dict[str, Any] = {}
        for view in self.watch(job):
            note(view)
        return view

    def _command(self, path: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._ask("POST", path, json=body, headers=headers)


def _encoded(images: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
    return {
        name: [base64.b64encode(data).decode() for data in given] for name, given in images.items()
    }


def _read_file(path: Path) -> tuple[bytes, str]:
    """A file's contents and content type. Raises `ClientError` when it can't be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClientError(f"can't read {path}: {error.strerror}") from None
    return data, mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def read_images(folder: Path) -> list[bytes]:
    """The contents of a folder's image files, by name. Raises `ClientError` if there are none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        found = [path.read_bytes() for path in files]
    except OSError as error:
        raise ClientError(f"can't read {error.filename}: {error.strerror}") from None
    if not found:
        raise ClientError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _sentence(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return f"{problem['detail']} {problem.get('advice', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code}: {response.text[:200]}"
