"""What a block changes in the process is put back."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from serving.cluster.process_state import environment, log_levels, signal_handlers

ANY = "LETHE_TEST_ANY"
OTHER = "LETHE_TEST_OTHER"


@pytest.fixture(autouse=True)
def any_is_set_and_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ANY, "mine")
    monkeypatch.delenv(OTHER, raising=False)


def test_values_are_in_the_environment_inside_the_block_alone() -> None:
    before = dict(os.environ)
    with environment({ANY: "yours", OTHER: "new"}):
        assert dict(os.environ) == {**before, ANY: "yours", OTHER: "new"}
    assert dict(os.environ) == before


def test_what_the_block_sets_and_deletes_is_taken_back_when_it_fails() -> None:
    before = dict(os.environ)

    def change() -> None:
        with environment({}):
            os.environ[OTHER] = "new"
            del os.environ[ANY]
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        change()
    assert dict(os.environ) == before


def test_processes_that_are_started_afterwards_see_what_was_before() -> None:
    with environment({ANY: "yours"}):
        del os.environ[ANY]
    assert os.popen(f"echo ${ANY}").read() == "mine\n"


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Numbers of the signals that a handler of this test's own has taken."""
    taken: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda n, _: taken.append(n))
    yield taken
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_handler_is_put_back_after_a_block_that_fails(
    handled: list[int], number: signal.Signals
) -> None:
    def ignore() -> None:
        with signal_handlers():
            signal.signal(number, signal.SIG_IGN)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        ignore()
    signal.raise_signal(number)
    assert handled == [number]


def test_a_thread_may_enter_although_it_can_set_no_handler() -> None:
    entered = threading.Event()

    def enter() -> None:
        with signal_handlers():
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered.is_set()


def test_the_levels_of_the_named_loggers_are_put_back() -> None:
    one, two = logging.getLogger("lethe.test.one"), logging.getLogger("lethe.test.two")
    one.setLevel(logging.ERROR)
    with log_levels(one.name):
        one.setLevel(logging.DEBUG)
        two.setLevel(logging.DEBUG)
    assert (one.level, two.level) == (logging.ERROR, logging.DEBUG)
