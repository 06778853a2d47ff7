"""A replica's side of the swap: register, follow, build, flip, drain, confirm; refuse when cut off.

Two threads of its own, so that neither a busy event loop nor a long forward pass delays a
heartbeat: one keeps the lease, the other waits for wake-ups and does what they ask. What is
active is read from the signed ledger, never taken from the coordinator's word: the coordinator
only says *that* there is something to read.
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

log = logging.getLogger(__name__)

FOLLOW_S = 5.0
"""Longest long poll; a lost wake-up costs no more than this."""
RETRY_S = 0.2
STUCK_LEASES = 3
"""After so many leases without the committed release a replica asks to be replaced."""

OnSwap = Callable[[str, float], None]
"""Told (phase or outcome, seconds) of each step of a swap."""
OnFailure = Callable[[Stage], None]
"""Told which step a release failed at."""


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
        self._lease_lock = threading.Lock()
        self._stuck_since: float | None = None
        self._stop = threading.Event()
        self._beat_now = threading.Event()
        self._decided = threading.Event()
        self._swapping = threading.Lock()
        self._threads: list[threading.Thread] = []

    # -- what the request path asks

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
        """Serve release `number` or a newer one. Raises `NotCurrentError` when it can't, at once
        when no such release is active."""
        try:
            if self._reader.active() < number:
                raise NotCurrentError(f"release {number} is not active yet")
            self.catch_up()
        except (RegistryError, BuildError) as error:
            raise NotCurrentError(f"this replica can't reach release {number}: {error}") from None
        if not self._slot.wait_for(number, timeout):
            raise NotCurrentError(f"this replica has not reached release {number}")

    def check_following(self) -> None:
        """Raises `NotCurrentError` when a release could not be taken up for several leases."""
        if self._stuck_since is not None:
            stuck = self._clock() - self._stuck_since
            if stuck > STUCK_LEASES * self._terms.seconds:
                raise NotCurrentError(f"this replica has been stuck for {stuck:.0f} s")

    # -- life

    def start(self, timeout: float) -> None:
        """Register, reach the active release and obtain a lease, all before serving.

        While serving is suspended there is no lease: then it returns without one, and `check`
        refuses. Raises `NotCurrentError` when it takes longer than `timeout` seconds.
        """
        deadline = self._clock() + timeout
        # By hand: tenacity counts on a clock of its own, and the rest of the time is the lease's.
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
        with self._lease_lock:
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
            with self._lease_lock:
                beat = self._lease.beat()
            try:
                pulse = self._coordinator.heartbeat(
                    self.name, beat.running, beat.silent, beat.number, timeout=self._timeout
                )
            except RayError as error:
                log.warning("heartbeat failed: %s", type(error).__name__)
                self._stop.wait(RETRY_S)
                continue
            with self._lease_lock:
                extended = self._lease.take(beat, pulse)
            if extended:
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
                # Aside, so that a long build holds up no guard.
                threading.Thread(
                    target=self._prepare, args=(wake.prepare,), name="prepare", daemon=True
                ).start()
            seen = Wake(seen.committed, wake.prepare, seen.suspended, seen.trial)
            if wake.suspended:
                # To stop, the coordinator's word is enough; to go on, only the ledger's is.
                self._halt()
            changed = wake.committed > self._lease.running or wake.trial != seen.trial
            if changed or not self._lease.stands_as(wake):
                try:
                    self.catch_up()
                except Exception as error:
                    # Whatever it is: the lease is no longer extended, so this replica soon stops
                    # serving, and this thread must live to try again.
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
        """Flip to the ledger's active release, drain, confirm, and stop or go on serving as it
        says; take up the release that is on trial, or let it go. Raises `RegistryError` or
        `BuildError`; the active release then stays."""
        with self._swapping:
            started = self._clock()
            number = self._reader.active()
            self._stand_as_the_ledger_says()
            if number > self._lease.running:
                ready = self._reader.ready(number, self._slot)
                built = self._clock()
                self._slot.flip(ready)
                if self._slot.drain(number, timeout=self._terms.seconds):
                    with self._lease_lock:
                        self._lease.confirm(number)
                    self._on_swap("build", built - started)
                    self._on_swap("flip", self._clock() - built)
                    self._on_swap("ok", self._clock() - started)
        self._beat_now.set()
        self._follow_trial()

    def _follow_trial(self) -> None:
        """Answer the ledger's share of the requests from the release on trial. Raises nothing: a
        replica that can't build it answers all of them from the active release."""
        with self._swapping:
            trial = self._reader.trial
            if trial is None:
                self._slot.end_trial()
                return
            try:
                ready = self._reader.ready(trial.release, self._slot)
            except Exception as error:
                log.exception("release %d can't be tried out", trial.release)
                self._slot.end_trial()  # of a trial that has ended meanwhile, if there is one
                self._report_failure(trial.release, error)
            else:
                self._slot.try_out(ready, trial.percent / 100)

    def _stand_as_the_ledger_says(self) -> None:
        if self._reader.suspended:
            self._halt()
            # Answers that were checked before the stop may still be on their way.
            drained = self._slot.drain(None, timeout=self._terms.seconds)
            with self._lease_lock:
                self._lease.fall_silent(drained=drained)
        elif self._lease.suspended:
            with self._lease_lock:
                self._lease.go_on()

    def _halt(self) -> None:
        """Answer nothing from here on."""
        with self._lease_lock:
            self._lease.halt()
        self._decided.set()
