"""Steady HTTP traffic of real images from another process, and the answers.

`Traffic` starts `serving.loadgen.sender` and collects a line for every request. Times are those of
CLOCK_MONOTONIC, which all processes of a machine share. So it is exact which requests were sent
after an acknowledgement.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from forgetting.data.image_set import ImageSet, image, indices, png_bytes
from forgetting.data.sources import open_image_set
from serving.errors import ServingError
from serving.loadgen.sender import Answer, ask, connect, instructions


def stale(answers: Iterable[Answer], acknowledged: Iterable[tuple[float, int]]) -> list[Answer]:
    """The broken promises: answers from a release older than one that was acknowledged before the
    request was sent. `acknowledged`: (time, release)."""
    acks = list(acknowledged)
    return [
        answer
        for answer in answers
        if answer.ok and any(answer.sent > at and answer.release < number for at, number in acks)
    ]


def held_out(images: ImageSet, classes: Sequence[str] | None = None) -> list[tuple[str, bytes]]:
    """(class, PNG) of every held-out image, or only those of `classes`."""
    return [
        (images.classes[int(images.labels[i])], png_bytes(image(images, int(i))))
        for i in indices(images, "test", classes=classes)
    ]


def audit(
    url: str, token: str, pictures: Sequence[tuple[str, bytes]], *, at_once: int = 8
) -> list[Answer]:
    """Ask for every image once, `at_once` at a time."""

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(at_once)
        async with connect(url, token) as client:

            async def one(label: str, png: bytes) -> Answer:
                async with gate:
                    return await ask(client, label, png)

            return await asyncio.gather(*(one(label, png) for label, png in pictures))

    return asyncio.run(run())


class TrafficError(ServingError):
    """The traffic process ended, or too few answers came."""


class Traffic:
    """Sends traffic from a process of its own while the block lasts, at a rate that doesn't depend
    on the answers (open loop)."""

    def __init__(self, url: str, token: str, *, images: str, rate: float) -> None:
        """`images`: the image source whose test split is sent; `rate`: requests a second."""
        self._command = [sys.executable, "-m", "serving.loadgen.sender", url, str(rate)]
        self._token, self._images = token, images
        self._answers: list[Answer] = []

    def __enter__(self) -> Traffic:
        pictures = _mixed(held_out(open_image_set(self._images)))
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._process.stdin is None:
            raise RuntimeError("the traffic process has no stdin")
        self._process.stdin.write(instructions(self._token, pictures))
        self._process.stdin.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # tells it to end
        try:
            self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(timeout=10)

    @property
    def answers(self) -> list[Answer]:
        """All answers so far."""
        return list(self._answers)

    def wait_for(self, count: int, timeout: float = 60.0) -> None:
        """Wait until `count` more requests are answered. Raises `TrafficError` after `timeout`
        seconds."""
        target = len(self._answers) + count
        deadline = time.monotonic() + timeout
        while len(self._answers) < target:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TrafficError(f"{len(self._answers)} of {target} answers in {timeout:g} s")
            time.sleep(0.02)

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            self._answers.append(Answer(**json.loads(line)))


def _mixed(pictures: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The images with classes taking turns, so that every stretch of traffic has all classes."""
    by_class: dict[str, list[tuple[str, bytes]]] = {}
    for picture in pictures:
        by_class.setdefault(picture[0], []).append(picture)
    rounds = itertools.zip_longest(*by_class.values())
    return [picture for turn in rounds for picture in turn if picture is not None]
