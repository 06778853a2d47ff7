"""Real members of a real coordinator, in one process: what lies between them is a function call.

A `Replica` is the shipped `Member` with a slot, a lease and a release reader of its own. Only the
way to the coordinator differs from production: `Link` runs the coordinator's coroutine on its event
loop, where Ray would carry the call to another process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Any

from ray.exceptions import ActorDiedError, GetTimeoutError

from forgetting.models.backbone import Backbone
from forgetting.models.golden import golden_image
from registry.log.ledger import Ledger
from registry.store.directory import DirectoryStore
from serving.config.home import Home, open_subjects
from serving.coordination.client import CoordinatorClient
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Pulse, ReleaseState, Terms
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.lease import NotCurrentError, SuspendedError
from serving.replica.member import Member
from serving.replica.release_reader import ReleaseReader
from serving.replica.slot import Slot

THAW_S = 0.01
START_S = 20.0


class DamagedBlobs(DirectoryStore):
    """A disk that gives every blob back with its last byte changed."""

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        found = super().read(key, at_most=at_most)
        return found if not key.startswith("blobs/") else found[:-1] + bytes([found[-1] ^ 1])


class Link(CoordinatorClient):
    """The way from one replica to the coordinator; a frozen replica neither asks nor hears."""

    def __init__(
        self, replica: Replica, coordinator: Coordinator, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(coordinator)
        self._replica = replica
        self._loop = loop

    def _ask(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        self._replica.wait_for_the_thaw()
        if self._loop.is_closed():
            raise ActorDiedError
        asked = getattr(self._actor, method)(*arguments)
        running = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            answer = running.result(timeout)
        except concurrent.futures.TimeoutError:
            raise GetTimeoutError(f"{method}: no answer within {timeout} s") from None
        except concurrent.futures.CancelledError:  # the coordinator's loop has ended
            raise ActorDiedError from None
        self._replica.wait_for_the_thaw()
        self._replica.note(method, arguments, answer)
        return answer


class Replica:
    """One real member. What happened to it can be read from `built` and `leases`."""

    def __init__(self, name: str, *, damaged: bool = False) -> None:
        """`damaged`: the disk of this replica gives no blob back as it was written."""
        self.name = name
        self.damaged = damaged
        self.frozen = False
        self.built: list[int] = []
        """Releases that it has built when it was asked to."""
        self.leases: list[bool] = []
        """Of each heartbeat, whether it extended the lease."""
        self._member: Member | None = None
        self._slot: Slot | None = None

    async def live(
        self, coordinator: Coordinator, *, home: Home, backbone: Backbone, terms: Terms
    ) -> None:
        """Serve until the task is cancelled."""
        loop = asyncio.get_running_loop()
        member = await asyncio.to_thread(self._make, coordinator, loop, home, backbone, terms)
        try:
            await asyncio.to_thread(member.start, START_S)
            await asyncio.Event().wait()
        finally:
            self.frozen = False
            await asyncio.to_thread(member.stop)

    def _make(
        self,
        coordinator: Coordinator,
        loop: asyncio.AbstractEventLoop,
        home: Home,
        backbone: Backbone,
        terms: Terms,
    ) -> Member:
        store = DamagedBlobs(home.registry) if self.damaged else DirectoryStore(home.registry)
        golden = golden_image(backbone.spec.preprocess.input_size)
        self._slot = Slot(TorchEngine(backbone.model), golden)
        self._member = Member(
            self.name,
            Link(self, coordinator, loop),
            slot=self._slot,
            reader=ReleaseReader(Ledger(store, home.trust), open_subjects(home), backbone),
            terms=terms,
            on_swap=lambda step, seconds: None,
            on_failure=lambda stage: None,
        )
        return self._member

    def wait_for_the_thaw(self) -> None:
        while self.frozen:
            time.sleep(THAW_S)

    def note(self, method: str, arguments: tuple[Any, ...], answer: Any) -> None:
        if method == "heartbeat" and isinstance(answer, Pulse):
            self.leases.append(answer.granted > 0)
        if method == "prepared":
            state = arguments[-1]
            if isinstance(state, ReleaseState) and state.problem is None:
                self.built.append(state.release)

    @property
    def silent(self) -> bool:
        """Whether it refuses to answer because serving is suspended."""
        return self._refuses(SuspendedError)

    @property
    def cut_off(self) -> bool:
        """Whether it refuses to answer because its lease has run out."""
        return self._refuses(NotCurrentError)

    def _refuses(self, kind: type[Exception]) -> bool:
        if self._member is None:
            return False
        try:
            self._member.check()
        except kind:
            return True
        except (NotCurrentError, SuspendedError):
            return False
        return False

    @property
    def trial(self) -> int:
        """The release that it answers a share of the requests from; 0: none."""
        ready = self._slot.trial if self._slot is not None else None
        return 0 if ready is None else ready.number

    @property
    def serves(self) -> int:
        """The release that it answers from; -1: none yet."""
        ready = self._slot.active if self._slot is not None else None
        return -1 if ready is None else ready.number
