"""Batches: requests that come at about the same time are computed together.

Our own code: in a profile of a replica, Ray's `serve.batch` took a tenth of the event loop's time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Asked, Answer]):
    asked: Asked
    until: float
    """When its batch must begin, on the event loop's clock."""
    answer: asyncio.Future[Answer]


class Batcher(Generic[Asked, Answer]):
    """Computes one batch at a time; what comes meanwhile makes up the next. For one event loop."""

    def __init__(
        self, work: Callable[[list[Asked]], Awaitable[list[Answer]]], *, size: int, wait_s: float
    ) -> None:
        """
        Args:
            work: Takes a batch and returns the answers in the same order. If it raises, all callers
                in the batch get the error.
            size: Largest batch.
            wait_s: Seconds that the first of a batch waits for others.
        """
        self._work = work
        self._size = size
        self._wait_s = wait_s
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer to `asked`. A caller that stops waiting doesn't take `asked` out of its batch:
        `work` decides whether to compute it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Waiting(asked, loop.time() + self._wait_s, answer))
        self._begin(loop)
        return await answer

    def _begin(self, loop: asyncio.AbstractEventLoop, *, due: bool = False) -> None:
        """Begin a batch if it is full or due and no other is running; else set a timer for it.

        With `wait_s` 0 it is due in the event loop's next turn, so that requests that have already
        arrived are read first.
        """
        if self._working is not None or not self._waiting:
            return
        if not due and len(self._waiting) < self._size:
            if self._timer is None:
                self._timer = loop.call_at(self._waiting[0].until, self._due, loop)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        self._working = loop.create_task(self._answer(batch, loop))

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._begin(loop, due=True)

    async def _answer(
        self, batch: list[_Waiting[Asked, Answer]], loop: asyncio.AbstractEventLoop
    ) -> None:
        try:
            answers = await self._work([each.asked for each in batch])
            for each, answer in zip(batch, answers, strict=True):
                if not each.answer.done():
                    each.answer.set_result(answer)
        except Exception as error:
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
        finally:
            for each in batch:
                each.answer.cancel()  # does nothing to those that have an answer
            self._working = None
            self._begin(loop, due=bool(self._waiting) and self._waiting[0].until <= loop.time())
