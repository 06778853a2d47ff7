"""A replica's side of the swap: register, follow, build, flip, drain, confirm.

`Member` has two threads, so that neither a busy event loop nor a long forward pass delays a
heartbeat: one keeps the lease, the other waits for wake-ups and acts on them. The coordinator only
says *that* there is something to read. What is active comes from the signed ledger.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ray.exceptions import RayError

from registry.errors import RegistryError
from serving.coordination.client import CoordinatorClient
from serving.coordination.membership import Clock, boot_clock
from serving.coordination.messages import ReleaseState, Stage, Terms, Wake
from serving.replica.lease import Lease, NotCurrentError
from serving.replica.release_reader import ReleaseReader, failed
from serving.replica.slot import BuildError, Slot
from serving.replica.swap import obey, take_up

log = logging.getLogger(__name__)

FOLLOW_S = 5.0
"""Longest wait of a long poll. If a wake-up is lost, the member waits this long at most."""
RETRY_S = 0.2
STUCK_LEASES = 3
"""After this many leases without the committed release, a replica reports itself unhealthy."""

OnSwap = Callable[[str, float], None]
"""Called with (phase or outcome, seconds) for each step of a swap."""
OnFailure = Callable[[Stage], None]
"""Called with the stage at which a release failed."""


class Member:
    """Keeps one replica's slot at the committed release, and its lease."""

    def __init__(
        self,
        name: str,
        coordinator: CoordinatorClient,
        *,
        slot: Slot,
        reader: ReleaseReader,
        terms: Terms,
        on_swap: OnSwap,
        on_failure: OnFailure,
        clock: Clock = boot_clock,
    ) -> None:
        self.name = name
        self._coordinator = coordinator
        self._slot = slot
        self._reader = reader
        self._terms = terms
        self._on_swap = on_swap
        self._on_failure = on_failure
        self._clock = clock
        self._timeout = max(terms.seconds / 2, 1.0)
        self._lease = Lease(terms, clock=clock)
        self._stuck_since: float | None = None
        self._stop = threading.Event()
        self._beat_now = threading.Event()
        self._decided = threading.Event()
        self._swapping = threading.Lock()
        self._threads: list[threading.Thread] = []

    # -- the request path calls these

    @property
    def lease_left(self) -> float:
        """Seconds for which this replica may still serve; negative when it may not."""
        return self._lease.left

    @property
    def suspended(self) -> bool:
        """Whether serving is suspended, as far as this replica knows."""
        return self._lease.suspended

    def check(self) -> None:
        """Raises as `Lease.check`."""
        self._lease.check()

    def catch_up_to(self, number: int, timeout: float) -> None:
        """Return once this replica serves release `number` or a newer one.

        Raises `NotCurrentError` when that takes longer than `timeout` seconds, and immediately when
        the ledger has no such release active.
        """
        try:
            if self._reader.active() < number:
                raise NotCurrentError(f"release {number} is not active yet")
            self.catch_up()
        except (RegistryError, BuildError) as error:
            raise NotCurrentError(f"this replica can't reach release {number}: {error}") from None
        if not self._slot.wait_for(number, timeout):
            raise NotCurrentError(f"this replica has not reached release {number}")

    def check_following(self) -> None:
        """Raises `NotCurrentError` when this replica could not serve the committed release for
        `STUCK_LEASES` leases."""
        if self._stuck_since is not None:
            stuck = self._clock() - self._stuck_since
            if stuck > STUCK_LEASES * self._terms.seconds:
                raise NotCurrentError(f"this replica has been stuck for {stuck:.0f} s")

    # -- start and stop

    def start(self, timeout: float) -> None:
        """Register, reach the active release and obtain a lease. Serve only after this.

        While serving is suspended, it returns without a lease, and `check` raises. Raises
        `NotCurrentError` when it takes longer than `timeout` seconds.
        """
        deadline = self._clock() + timeout
        # By hand, not with tenacity: the deadline is on the lease's clock, and also holds below.
        while True:
            try:
                self._coordinator.register(self.name, timeout=self._timeout)
                break
            except RayError as error:
                if self._clock() > deadline:
                    raise NotCurrentError(f"the coordinator can't be reached: {error}") from None
                self._stop.wait(RETRY_S)
        self.catch_up()
        for target in (self._keep_lease, self._follow):
            thread = threading.Thread(target=target, name=f"member{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._decided.wait(max(deadline - self._clock(), 1.0))
        if not self.suspended:
            self.check()

    def stop(self) -> None:
        """End the lease first, then tell the coordinator."""
        self._stop.set()
        self._lease.end()
        self._beat_now.set()
        for thread in self._threads:
            thread.join(timeout=self._terms.heartbeat * 2)
        try:
            self._coordinator.leave(self.name, timeout=self._timeout)
        except RayError:
            log.info("left without telling the coordinator; the lease has ended here")

    # -- the two threads

    def _keep_lease(self) -> None:
        while not self._stop.is_set():
            beat = self._lease.beat()
            try:
                pulse = self._coordinator.heartbeat(
                    self.name, beat.running, beat.silent, beat.number, timeout=self._timeout
                )
            except RayError as error:
                log.warning("heartbeat failed: %s", type(error).__name__)
                self._stop.wait(RETRY_S)
                continue
            if self._lease.take(beat, pulse):
                self._decided.set()
            self._beat_now.wait(self._terms.heartbeat)
            self._beat_now.clear()

    def _follow(self) -> None:
        running = self._lease.running
        seen = Wake(running, running, suspended=self._lease.silent)
        while not self._stop.is_set():
            try:
                wake = self._coordinator.follow(self.name, seen, FOLLOW_S, timeout=FOLLOW_S * 2)
            except RayError as error:
                log.warning("lost the coordinator (%s); asking again", type(error).__name__)
                self._stop.wait(RETRY_S)
                continue
            if wake.prepare > max(seen.prepare, self._lease.running):
                # In a thread of its own, so that a long build doesn't delay a guard.
                threading.Thread(
                    target=self._prepare, args=(wake.prepare,), name="prepare", daemon=True
                ).start()
            seen = Wake(seen.committed, wake.prepare, seen.suspended, seen.trial)
            if wake.suspended:
                # The coordinator's word is enough to stop. To answer again, the ledger must say so.
                self._lease.halt()
                self._decided.set()
            changed = wake.committed > self._lease.running or wake.trial != seen.trial
            if changed or not self._lease.stands_as(wake):
                try:
                    self.catch_up()
                except Exception as error:
                    # Any error may come here. The lease isn't extended any more, so this replica
                    # soon stops serving; this thread must survive to try again.
                    log.exception("can't reach the committed release: %s", type(error).__name__)
                    self._on_swap("failed", 0.0)
                    self._report_failure(wake.committed, error)
                    self._stuck_since = self._stuck_since or self._clock()
                    self._stop.wait(self._terms.heartbeat)
                    continue
            if self._lease.running >= wake.committed:
                self._stuck_since = None
            seen = Wake(
                wake.committed, wake.prepare, wake.suspended and self._lease.silent, wake.trial
            )

    def _prepare(self, number: int) -> None:
        try:
            self._reader.ready(number, self._slot)
        except Exception as error:
            log.exception("release %d can't be prepared", number)
            self._on_swap("rejected", 0.0)
            self._report_failure(number, error)
        else:
            self._report(ReleaseState(number, "resident"))

    def _report_failure(self, number: int, error: Exception) -> None:
        state = failed(number, error)
        self._on_failure(state.stage)
        self._report(state)

    def _report(self, state: ReleaseState) -> None:
        try:
            self._coordinator.prepared(self.name, state, timeout=self._timeout)
        except RayError:
            log.warning("the coordinator that asked for release %d is gone", state.release)

    def catch_up(self) -> None:
        """Do what the ledger says: suspend or resume, flip to the active release (then drain and
        confirm), and begin or end a trial.

        Raises `RegistryError` or `BuildError`; what was active then stays active.
        """
        with self._swapping:
            started = self._clock()
            number = self._reader.active()
            self._obey()
            if number > self._lease.running:
                ready = self._reader.ready(number, self._slot)
                built = self._clock()
                if take_up(ready, self._slot, self._lease, timeout=self._terms.seconds):
                    self._on_swap("build", built - started)
                    self._on_swap("flip", self._clock() - built)
                    self._on_swap("ok", self._clock() - started)
        self._beat_now.set()
        self._follow_trial()

    def _follow_trial(self) -> None:
        """Answer the trial's share of the requests from the release on trial. Raises nothing: a
        replica that can't build that release answers all requests from the active one."""
        with self._swapping:
            trial = self._reader.trial
            if trial is None:
                self._slot.end_trial()
                return
            try:
                ready = self._reader.ready(trial.release, self._slot)
            except Exception as error:
                log.exception("release %d can't be tried out", trial.release)
                self._slot.end_trial()  # an older trial may still be on
                self._report_failure(trial.release, error)
            else:
                self._slot.try_out(ready, trial.percent / 100)

    def _obey(self) -> None:
        suspended = self._reader.suspended
        obey(suspended=suspended, slot=self._slot, lease=self._lease, timeout=self._terms.seconds)
        if suspended:
            self._decided.set()
