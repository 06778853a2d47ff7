"""Steady HTTP traffic of real images from another process, and what came back.

`python -m serving.traffic` sends; `Traffic` starts it and collects a line for every request. The
clock is CLOCK_MONOTONIC, which all processes of a machine share, so "sent after the
acknowledgement" can be decided exactly.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import httpx

from forgetting.data import ImageSet, image, indices, open_image_set, png_bytes

# Requests in flight at once; the connections of a client.
MOST_AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """One request and its response. Times: CLOCK_MONOTONIC seconds."""

    sent: float
    got: float
    status: int
    """HTTP status; 0 when there was no response."""
    release: int
    label: str
    """The class that the image really shows."""
    named: str
    """The first label of the response."""
    weights: str
    """The same before the mask (with the auditor's token)."""
    replica: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


def stale(answers: Iterable[Answer], acknowledged: Iterable[tuple[float, int]]) -> list[Answer]:
    """Responses to requests sent after (time, release) that came from an older release."""
    acks = list(acknowledged)
    return [
        answer
        for answer in answers
        if answer.ok and any(answer.sent > at and answer.release < number for at, number in acks)
    ]


def held_out(images: ImageSet, classes: Sequence[str] | None = None) -> list[tuple[str, bytes]]:
    """(class, PNG) of every held-out image, or those of `classes`."""
    return [
        (images.classes[int(images.labels[i])], png_bytes(image(images, int(i))))
        for i in indices(images, "test", classes=classes)
    ]


async def ask(
    client: httpx.AsyncClient, label: str, png: bytes, *, min_release: int | None = None
) -> Answer:
    """Send one image and note what came back; never raises for a failed request."""
    headers = {"Content-Type": "image/png"}
    if min_release is not None:
        headers["X-Lethe-Min-Release"] = str(min_release)
    sent = time.monotonic()
    try:
        response = await client.post("/v1/predict", content=png, headers=headers)
    except httpx.HTTPError as error:
        return Answer(sent, time.monotonic(), 0, -1, label, "", "", "", repr(error))
    got = time.monotonic()
    if response.status_code != 200:
        return Answer(sent, got, response.status_code, -1, label, "", "", "", response.text[:300])
    try:
        body = response.json()
        return Answer(
            sent,
            got,
            200,
            int(body["release"]),
            label,
            body["predictions"][0]["label"],
            body["before_mask"][0]["label"] if "before_mask" in body else "",
            response.headers.get("x-lethe-replica", ""),
        )
    except (ValueError, LookupError) as error:
        return Answer(sent, got, 0, -1, label, "", "", "", f"a malformed answer: {error!r}")


def connect(url: str, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        limits=httpx.Limits(max_connections=MOST_AT_ONCE, max_keepalive_connections=MOST_AT_ONCE),
        trust_env=False,
    )


def audit(
    url: str, token: str, pictures: Sequence[tuple[str, bytes]], *, at_once: int = 8
) -> list[Answer]:
    """Ask for every picture once, a few at a time."""

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(at_once)
        async with connect(url, token) as client:

            async def one(label: str, png: bytes) -> Answer:
                async with gate:
                    return await ask(client, label, png)

            return await asyncio.gather(*(one(label, png) for label, png in pictures))

    return asyncio.run(run())


class TrafficError(Exception):
    """The traffic ended, or its answers stay away."""


class Traffic:
    """Open-loop traffic from a process of its own while the block lasts."""

    def __init__(self, url: str, token: str, *, images: str, rate: float) -> None:
        """`images`: an image source, its test split is sent; `rate`: requests a second."""
        self._command = [sys.executable, "-m", "serving.traffic", url, images, str(rate)]
        self._token = token
        self._answers: list[Answer] = []

    def __enter__(self) -> Traffic:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._process.stdin is None:
            raise RuntimeError("the traffic process has no stdin")
        # Not on the command line, where every user of the machine could read it.
        self._process.stdin.write(self._token + "\n")
        self._process.stdin.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # the sign to end
        try:
            self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(timeout=10)

    @property
    def answers(self) -> list[Answer]:
        """Everything that came back so far."""
        return list(self._answers)

    def wait_for(self, count: int, timeout: float = 60.0) -> None:
        """Wait until `count` more requests were answered. Raises `TrafficError`."""
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


async def _send(url: str, token: str, pictures: list[tuple[str, bytes]], rate: float) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)))
    waiting: set[asyncio.Task[Any]] = set()

    async def one(label: str, png: bytes) -> None:
        answer = await ask(client, label, png)
        sys.stdout.write(json.dumps(asdict(answer)) + "\n")
        sys.stdout.flush()

    async with connect(url, token) as client:
        due = time.monotonic()
        for label, png in itertools.cycle(pictures):
            if ended.is_set():
                break
            task = asyncio.create_task(one(label, png))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            if len(waiting) >= MOST_AT_ONCE:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # What a stall held up is sent late, but not more than a second's worth of it: requests
            # that pile up here would take the cores that the replicas need to catch up.
            due = max(due + 1 / rate, time.monotonic() - 1)
            await asyncio.sleep(max(due - time.monotonic(), 0))
        await asyncio.gather(*waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("images")
    parser.add_argument("rate", type=float)
    arguments = parser.parse_args()
    token = sys.stdin.readline().strip()
    pictures = _mixed(held_out(open_image_set(arguments.images)))
    asyncio.run(_send(arguments.url, token, pictures, arguments.rate))


def _mixed(pictures: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Classes in turn, so that every stretch of traffic holds all of them."""
    by_class: dict[str, list[tuple[str, bytes]]] = {}
    for picture in pictures:
        by_class.setdefault(picture[0], []).append(picture)
    rounds = itertools.zip_longest(*by_class.values())
    return [picture for turn in rounds for picture in turn if picture is not None]


if __name__ == "__main__":
    main()
