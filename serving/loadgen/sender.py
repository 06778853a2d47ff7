"""The process that sends traffic: `python -m serving.loadgen.sender URL RATE`. `Traffic` starts it.

It reads the token and the images from standard input, a line each, and ends when standard input
ends. It writes a line for every request. It imports little, so that it starts quickly.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

# Most requests in flight at once, and most connections.
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
    """The class that the image shows."""
    named: str
    """The first label of the response."""
    weights: str
    """The first label before the mask (with the auditor's token)."""
    replica: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


async def ask(
    client: httpx.AsyncClient, label: str, png: bytes, *, min_release: int | None = None
) -> Answer:
    """Send one image and return what came back. Doesn't raise for a request that fails."""
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


def instructions(token: str, pictures: Sequence[tuple[str, bytes]]) -> str:
    """What the process reads from standard input. (Other users could read its command line.)"""
    encoded = [(label, base64.b64encode(png).decode()) for label, png in pictures]
    return f"{token}\n{json.dumps(encoded)}\n"


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
            # After a stall, at most one second's requests are sent late. More of them would take
            # the CPU time that the replicas need to catch up.
            due = max(due + 1 / rate, time.monotonic() - 1)
            await asyncio.sleep(max(due - time.monotonic(), 0))
        await asyncio.gather(*waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("rate", type=float)
    arguments = parser.parse_args()
    token = sys.stdin.readline().strip()
    pictures = [(label, base64.b64decode(png)) for label, png in json.loads(sys.stdin.readline())]
    asyncio.run(_send(arguments.url, token, pictures, arguments.rate))


if __name__ == "__main__":
    main()
