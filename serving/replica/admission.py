"""Limits what a replica works on: a number of images at once, and nothing new while it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import ServingError
from serving.replica.slot import Ticket

POLL_S = 0.02


class BusyError(ServingError):
    """The replica already works on as many images as it may; try again later."""


class StoppingError(ServingError):
    """The server is stopping and accepts no new requests; it finishes those it has."""


class DeadlineError(ServingError):
    """The deadline passed before the image was computed, so it wasn't computed."""


class OtherReleaseError(ServingError):
    """The request names a release that is not the active one."""


class AskedError(ServingError):
    """The release that an auditor asks for doesn't exist (`status` 404) or can't be built (409)."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Call:
    """What a request carries besides its images."""

    request_id: str
    ticket: Ticket
    deadline: float
    """Seconds on the event loop's clock. An image whose computation hasn't begun by then is
    skipped."""
    min_release: int | None = None
    """Oldest release that may answer."""
    release: int | None = None
    """The only release that may answer. It must be the active one, unless an auditor asks."""
    auditing: bool = False
    """Whether the auditor's token was shown."""
    probe: bool = False
    """The request is a probe, so the shadow doesn't sample it."""


class Admission:
    """Counts the requests that aren't answered yet and the images that aren't computed yet.

    Needs no lock: only one event loop uses it.
    """

    def __init__(self, most_images: int) -> None:
        self._most = most_images
        self._images = 0
        self._requests = 0
        self._stopping = False

    @property
    def stopping(self) -> bool:
        return self._stopping

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Hold this from a request's arrival until its response is sent. Raises `StoppingError`."""
        if self._stopping:
            raise StoppingError
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.contextmanager
    def images(self, count: int) -> Iterator[None]:
        """Hold this while `count` images are computed. Raises `BusyError` if they are too many.

        When no other images are being computed, any number is accepted.
        """
        if self._images and self._images + count > self._most:
            raise BusyError
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    async def drain(self, *, notice: float, patience: float) -> bool:
        """Accept requests for `notice` more seconds and none after that. Then wait up to `patience`
        seconds until all are answered; False if some are not."""
        await asyncio.sleep(notice)
        self._stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while self._requests and loop.time() < deadline:
            await asyncio.sleep(POLL_S)
        return not self._requests
