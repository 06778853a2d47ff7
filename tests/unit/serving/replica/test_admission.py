"""How many images a replica accepts, and how it stops."""

from __future__ import annotations

import asyncio

import pytest

from serving.replica.admission import Admission, BusyError, StoppingError


def test_more_images_than_may_be_at_once_are_refused_until_there_is_room() -> None:
    admission = Admission(4)
    with admission.images(3):
        with pytest.raises(BusyError), admission.images(2):
            pass
        with admission.images(1):
            pass
    with admission.images(9):  # when nothing else is computed, any number is accepted
        pass


def test_a_stop_waits_for_what_was_let_in_and_refuses_what_comes_after() -> None:
    async def run() -> None:
        admission = Admission(4)
        answered = asyncio.Event()

        async def request() -> None:
            with admission.request():
                await answered.wait()

        asked = asyncio.create_task(request())
        await asyncio.sleep(0)
        stop = asyncio.create_task(admission.drain(notice=0.05, patience=5))
        await asyncio.sleep(0)
        with admission.request():  # a request that was on its way is still accepted
            pass
        await asyncio.sleep(0.2)
        assert admission.stopping
        with pytest.raises(StoppingError), admission.request():
            pass
        assert not stop.done()
        answered.set()
        assert await stop
        await asked

    asyncio.run(run())


def test_a_stop_does_not_wait_for_ever() -> None:
    async def run() -> bool:
        admission = Admission(4)
        with admission.request():
            return await admission.drain(notice=0, patience=0.05)

    assert asyncio.run(run()) is False
