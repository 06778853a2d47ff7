"""Requests that come at the same time form a batch; a failure reaches all callers in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from serving.replica.batching import Batcher

Work = Callable[[list[int]], Awaitable[list[int]]]


def squares(seen: list[list[int]], *, seconds: float = 0.0) -> Work:
    async def work(asked: list[int]) -> list[int]:
        seen.append(asked)
        await asyncio.sleep(seconds)
        return [x * x for x in asked]

    return work


def run(coroutine: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, timeout=10))


def test_what_comes_in_one_turn_of_the_loop_is_one_batch_without_any_wait() -> None:
    async def scene() -> None:
        seen: list[list[int]] = []
        batches = Batcher(squares(seen), size=8, wait_s=0.0)
        assert await asyncio.gather(*map(batches.ask, range(5))) == [0, 1, 4, 9, 16]
        assert seen == [[0, 1, 2, 3, 4]]

    run(scene())


def test_a_batch_has_at_most_its_size_and_answers_keep_their_order() -> None:
    async def scene() -> None:
        seen: list[list[int]] = []
        batches = Batcher(squares(seen), size=4, wait_s=0.0)
        answers = await asyncio.gather(*map(batches.ask, range(10)))
        assert answers == [x * x for x in range(10)]
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    run(scene())


def test_what_comes_while_a_batch_is_worked_on_is_the_next_one() -> None:
    async def scene() -> None:
        seen: list[list[int]] = []
        batches = Batcher(squares(seen, seconds=0.05), size=8, wait_s=0.0)
        first = asyncio.create_task(batches.ask(1))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(batches.ask(x)) for x in (2, 3)]
        assert await asyncio.gather(first, *others) == [1, 4, 9]
        assert seen == [[1], [2, 3]]

    run(scene())


def test_the_first_waits_for_company_as_long_as_it_may_and_no_longer() -> None:
    async def scene() -> None:
        seen: list[list[int]] = []
        batches = Batcher(squares(seen), size=3, wait_s=0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        first = asyncio.create_task(batches.ask(1))
        await asyncio.sleep(0.02)
        assert not seen
        assert await asyncio.gather(first, batches.ask(2)) == [1, 4]
        assert 0.09 < loop.time() - began < 1
        full = loop.time()
        await asyncio.gather(*map(batches.ask, (3, 4, 5)))  # full, so it doesn't wait
        assert loop.time() - full < 0.09
        assert seen == [[1, 2], [3, 4, 5]]

    run(scene())


def test_a_failure_befalls_its_batch_and_no_other() -> None:
    async def scene() -> None:
        async def work(asked: list[int]) -> list[int]:
            if 0 in asked:
                raise ZeroDivisionError("no")
            return [10 // x for x in asked]

        batches = Batcher(work, size=2, wait_s=0.0)
        found = await asyncio.gather(*map(batches.ask, (0, 1, 2, 5)), return_exceptions=True)
        assert [type(each) for each in found[:2]] == [ZeroDivisionError, ZeroDivisionError]
        assert found[2:] == [5, 2]
        assert await batches.ask(10) == 1

    run(scene())


def test_too_few_answers_fail_everybody_and_hang_nobody() -> None:
    async def scene() -> None:
        async def work(asked: list[int]) -> list[int]:
            return asked[:-1]

        batches = Batcher(work, size=2, wait_s=0.0)
        found = await asyncio.gather(*map(batches.ask, (1, 2)), return_exceptions=True)
        assert isinstance(found[1], ValueError)

    run(scene())


def test_whoever_has_gone_takes_nobody_with_them() -> None:
    async def scene() -> None:
        seen: list[list[int]] = []
        batches = Batcher(squares(seen, seconds=0.02), size=8, wait_s=0.0)
        gone, stays = (asyncio.create_task(batches.ask(x)) for x in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await stays == 4
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert seen == [[1, 2]]
        assert await batches.ask(3) == 9

    run(scene())


def test_whoever_waits_is_not_left_behind_when_the_work_is_cancelled() -> None:
    async def scene() -> None:
        async def work(asked: list[int]) -> list[int]:
            raise asyncio.CancelledError

        batches = Batcher(work, size=8, wait_s=0.0)
        with pytest.raises(asyncio.CancelledError):
            await batches.ask(1)

    run(scene())
