"""Batches: what is asked at about the same time is worked on together.

Our own code, not Ray's `serve.batch`: that took a tenth of the event loop's time, by a profile.
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
    """When it has waited long enough, on the event loop's clock."""
    answer: asyncio.Future[Answer]


class Batcher(Generic[Asked, Answer]):
    """Of one event loop. One batch is worked on at a time; what comes meanwhile is the next."""

    def __init__(
        self, work: Callable[[list[Asked]], Awaitable[list[Answer]]], *, size: int, wait_s: float
    ) -> None:
        """`work` answers each of at most `size`, in order; the first waits up to `wait_s` seconds
        for the others. What it raises, everybody in the batch gets."""
        self._work = work
        self._size = size
        self._wait_s = wait_s
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer. It is worked out even if nobody waits for it any more: whether that is worth
        its while is for `work` to judge."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append(_Waiting(asked, loop.time() + self._wait_s, answer))
        self._begin(loop)
        return await answer

    def _begin(self, loop: asyncio.AbstractEventLoop, *, due: bool = False) -> None:
        """Begin a batch, unless one is worked on, if it is full or due; else see to it once it is.

        Without a wait it is due in the event loop's next turn: what has come already is read first.
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
                each.answer.cancel()  # of no effect on what is answered
            self._working = None
            self._begin(loop, due=bool(self._waiting) and self._waiting[0].until <= loop.time())
