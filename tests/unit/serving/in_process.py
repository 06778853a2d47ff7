"""Actors in this process: the real objects behind the real clients, without Ray between them.

A `Process` runs one actor as Ray would: what it is asked crosses as a copy, what it raises comes
out as a RayTaskError, and whoever asks while it is away gets an ActorDiedError. The clients here
are those that are shipped, but for how they wait for an answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import inspect
import threading
import traceback
from collections.abc import Callable, Collection, Coroutine, Generator
from typing import Any, Generic, TypeVar

from ray import cloudpickle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from serving.control.client import BlockingControlClient
from serving.coordination.client import CoordinatorClient
from serving.monitoring.client import MonitorClient, WatchClient
from serving.training.client import TrainerClient
from serving.training.messages import NotTrained, Trained, TrainJob

T = TypeVar("T")

START_S = 60.0


class Call:
    """What `.remote()` returns: to be awaited, or waited for."""

    def __init__(self, outcome: concurrent.futures.Future[bytes]) -> None:
        self._outcome = outcome

    def result(self, timeout: float | None = None) -> Any:
        """Raises `GetTimeoutError` after `timeout` seconds, and else what the actor raised."""
        try:
            return cloudpickle.loads(self._outcome.result(timeout))
        except concurrent.futures.TimeoutError:
            raise GetTimeoutError(f"no answer within {timeout:g} s") from None

    def done(self, timeout: float) -> bool:
        """Whether it is answered within `timeout` seconds."""
        return bool(concurrent.futures.wait([self._outcome], timeout).done)

    def __await__(self) -> Generator[Any, None, Any]:
        packed = yield from asyncio.wrap_future(self._outcome).__await__()
        return cloudpickle.loads(packed)


class Handle:
    """What a client is given: `handle.method.remote(*arguments)`."""

    def __init__(self, process: Process[Any]) -> None:
        self._process = process

    def __getattr__(self, method: str) -> _Method:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self._process, method)


class _Method:
    def __init__(self, process: Process[Any], name: str) -> None:
        self._process = process
        self._name = name

    def remote(self, *arguments: Any) -> Call:
        return self._process.call(self._name, arguments)


class Process(Generic[T]):
    """One actor: started at once, killed and started again as often as a test wants."""

    def __init__(self, build: Callable[[], T], *, threads: Collection[str] = ()) -> None:
        """`build` calls the actor's constructor; `threads` names those that it starts, which end
        when it is killed. Raises what the constructor raises."""
        self._build = build
        self._names = frozenset(threads)
        self._books = threading.Lock()
        self._outcomes: set[concurrent.futures.Future[bytes]] = set()
        self._own: set[threading.Thread] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._life: threading.Thread | None = None
        self.handle = Handle(self)
        self.actor: T
        self.start()

    def start(self) -> None:
        """Run the constructor in a thread of its own; it may want an event loop."""
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        before = set(threading.enumerate())
        self._ending = asyncio.Event()
        self._life = threading.Thread(
            target=lambda: asyncio.run(self._live(started)), name="actor", daemon=True
        )
        self._life.start()
        started.result(START_S)
        new = set(threading.enumerate()) - before
        self._own |= {thread for thread in new if thread.name in self._names}

    async def _live(self, started: concurrent.futures.Future[None]) -> None:
        try:
            self.actor = self._build()
        except BaseException as error:
            started.set_exception(error)
            return
        self._loop = asyncio.get_running_loop()
        started.set_result(None)
        await self._ending.wait()

    @property
    def alive(self) -> bool:
        return self._loop is not None

    def kill(self) -> None:
        """Nothing goes on in it, and whoever waits for an answer learns that it died."""
        with self._books:
            loop, self._loop = self._loop, None
            waiting, self._outcomes = self._outcomes, set()
            own, self._own = self._own, set()
        if loop is None or self._life is None:
            return
        for thread in own:
            _end(thread)
        loop.call_soon_threadsafe(self._ending.set)
        for outcome in waiting:
            outcome.set_exception(ActorDiedError())
        self._life.join(START_S)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Call:
        outcome: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        outcome.set_running_or_notify_cancel()  # who awaits it can't take it back
        packed = cloudpickle.dumps(arguments)
        with self._books:
            loop = self._loop
            if loop is None:
                outcome.set_exception(ActorDiedError())
                return Call(outcome)
            self._outcomes.add(outcome)
            act = getattr(self.actor, method)
            if inspect.iscoroutinefunction(act):
                running = self._await(act, packed, outcome)
                asyncio.run_coroutine_threadsafe(running, loop)
            else:
                thread = threading.Thread(
                    target=self._run, args=(act, packed, outcome), name="call", daemon=True
                )
                self._own.add(thread)
                thread.start()
        return Call(outcome)

    def _run(
        self, act: Callable[..., Any], packed: bytes, outcome: concurrent.futures.Future[bytes]
    ) -> None:
        try:
            self._answer(outcome, cloudpickle.dumps(act(*cloudpickle.loads(packed))))
        except Exception as error:
            self._answer(outcome, error)
        finally:
            self._own.discard(threading.current_thread())

    async def _await(
        self,
        act: Callable[..., Coroutine[Any, Any, Any]],
        packed: bytes,
        outcome: concurrent.futures.Future[bytes],
    ) -> None:
        try:
            self._answer(outcome, cloudpickle.dumps(await act(*cloudpickle.loads(packed))))
        except Exception as error:
            self._answer(outcome, error)

    def _answer(self, outcome: concurrent.futures.Future[bytes], answer: bytes | Exception) -> None:
        with self._books:
            if outcome not in self._outcomes:
                return  # it was killed meanwhile
            self._outcomes.remove(outcome)
        if isinstance(answer, bytes):
            outcome.set_result(answer)
        else:
            lines = "".join(traceback.format_exception(answer))
            task = RayTaskError("call", lines, answer, ip="127.0.0.1")
            outcome.set_exception(task.as_instanceof_cause())


def _end(thread: threading.Thread) -> None:
    """Have `thread` end at its next step in Python, which is no failure."""
    if thread.ident is not None:
        vars(thread)["_invoke_excepthook"] = lambda *_: None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )


class _Local:
    """How a blocking client waits for an actor of this process."""

    _actor: Any

    def _ask(self, method: str, *arguments: object, timeout: float | None = None) -> Any:
        call: Call = getattr(self._actor, method).remote(*arguments)
        return call.result(timeout)


class LocalCoordinator(_Local, CoordinatorClient):
    pass


class LocalControl(_Local, BlockingControlClient):
    pass


class LocalMonitor(_Local, MonitorClient):
    pass


class LocalWatch(_Local, WatchClient):
    pass


class LocalTrainer(_Local, TrainerClient):
    def _begin(self, task: TrainJob) -> Call:
        call: Call = self._actor.train.remote(task)
        return call

    def _ended(self, running: Call, *, timeout: float) -> Trained | NotTrained | None:
        result: Trained | NotTrained | None = running.result() if running.done(timeout) else None
        return result
