"""Named actors on a real Ray: found again, replaced, restarted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.exceptions import RayActorError, RayError

from serving.cluster import process_state
from serving.cluster.actors import NAMESPACE, replace_actor, start_actor
from serving.cluster.local import start_ray
from serving.cluster.ray_private import LOGGER_OF_RAY
from serving.config.sources import load_settings

PATIENCE_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    with (
        process_state.environment({}),
        process_state.signal_handlers(),
        process_state.log_levels(LOGGER_OF_RAY),
    ):
        start_ray(load_settings())
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def note() -> type:
    """An actor's class; local, so that Ray sends it to the process by value."""

    class Note:
        def __init__(self, text: str, *, end: str = "") -> None:
            self._text = text + end
            self._meeting = threading.Barrier(2)

        def read(self) -> str:
            return self._text

        def write(self, text: str) -> None:
            self._text = text

        def process(self) -> int:
            return os.getpid()

        def meet(self) -> None:
            """Returns when two calls are here at once."""
            self._meeting.wait(PATIENCE_S)

    return Note


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an actor of this test alone."""
    name = str(request.node.name)
    yield name
    ray.kill(ray.get_actor(name, NAMESPACE))


def eventually(ask: Callable[[], str]) -> str:
    """What `ask` returns once the actor answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except RayError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_second_start_finds_the_actor_with_its_state(name: str, note: type) -> None:
    first = start_actor(note, name, "made", end=" first", concurrency=1)
    assert ray.get(first.read.remote()) == "made first"
    ray.get(first.write.remote("written"))
    second = start_actor(note, name, "made", end=" second", concurrency=1)
    assert ray.get(second.read.remote()) == "written"
    assert ray.get(ray.get_actor(name, NAMESPACE).read.remote()) == "written"


def test_a_replacement_is_new_and_ends_the_actor_that_ran(name: str, note: type) -> None:
    olds = [replace_actor(note, name, "first", concurrency=1)]  # nothing ran: that is no error
    for text in ("second", "third"):
        new = replace_actor(note, name, text, end="!", concurrency=1)
        assert ray.get(new.read.remote()) == f"{text}!"
        with pytest.raises(RayActorError):
            ray.get(olds[-1].read.remote())
        olds.append(new)
    assert ray.get(ray.get_actor(name, NAMESPACE).read.remote()) == "third!"


def test_an_actor_whose_process_is_killed_comes_back(name: str, note: type) -> None:
    actor = start_actor(note, name, "made", concurrency=1)
    ray.get(actor.write.remote("written"))
    for _ in range(2):
        process = ray.get(actor.process.remote())
        os.kill(process, signal.SIGKILL)
        assert eventually(lambda: ray.get(actor.read.remote())) == "made"
        assert ray.get(actor.process.remote()) != process


def test_an_actor_takes_as_many_calls_at_once_as_it_is_told(name: str, note: type) -> None:
    actor = start_actor(note, name, "made", concurrency=2)
    ray.get([actor.meet.remote(), actor.meet.remote()], timeout=PATIENCE_S)
