"""What a replica lets in: so many images at once, and nothing any more once it is to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import ServingError
from serving.replica.slot import Ticket

POLL_S = 0.02


class BusyError(ServingError):
    """The replica works on as many images as it may; later there is room."""


class StoppingError(ServingError):
    """The server is being stopped; what it had let in is finished."""


class DeadlineError(ServingError):
    """The deadline passed before the image was computed, so it was not."""


class OtherReleaseError(ServingError):
    """The release that was asked for is not the one that serves."""


class AskedError(ServingError):
    """There is no such release to be answered by; `status` is HTTP's word for why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class Call:
    """What a request asks beside its images."""

    request_id: str
    ticket: Ticket
    deadline: float
    """Seconds on the event loop's clock: what is not being computed by then never is."""
    min_release: int | None = None
    """Oldest release that may answer."""
    release: int | None = None
    """The only release that may answer: the one that serves, or for an auditor any."""
    auditing: bool = False
    """Whether the auditor's token was shown."""
    probe: bool = False
    """A probe is no traffic: the shadow's sample is of all others."""


class Admission:
    """Counts requests until they are answered, and the images of them until these are computed.

    Of one event loop, so there is no lock.
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
        """From when a request came until it is answered. Raises `StoppingError`."""
        if self._stopping:
            raise StoppingError
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.contextmanager
    def images(self, count: int) -> Iterator[None]:
        """While `count` images are worked on. Raises `BusyError`; one alone, or the only request's,
        always has room."""
        if self._images and self._images + count > self._most:
            raise BusyError
        self._images += count
        try:
            yield
        finally:
            self._images -= count

    async def drain(self, *, notice: float, patience: float) -> bool:
        """Let in what comes within `notice` seconds, nothing after, and wait up to `patience`
        seconds until all of it is answered; False when it is not."""
        await asyncio.sleep(notice)
        self._stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while self._requests and loop.time() < deadline:
            await asyncio.sleep(POLL_S)
        return not self._requests
