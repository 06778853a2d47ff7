"""The coordinator actor: the only process that activates and acknowledges releases.

It is a small detached actor without a reserved CPU. Its state is in the ledger, except the
membership: that is rebuilt from heartbeats, within one lease after a restart. Until then nothing is
acknowledged.

    publish (durable) -> prepare on every member -> activate (durable) -> wake -> drain
    -> every member has confirmed, or its lease has run out -> acknowledge

    begin a trial (durable) -> wake; a release that forgets more answers a share of the requests

    suspend (durable) -> wake -> every member is silent, or its lease has run out -> acknowledge
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from registry.errors import ConflictError, RegistryError
from registry.fold.state import Release, State
from registry.log.ledger import utc_now
from registry.records.declarations import ServingState
from serving.config.home import Home, wait_for_ledger
from serving.coordination.ledger_writer import LedgerWriter
from serving.coordination.membership import Membership
from serving.coordination.messages import (
    Ack,
    Author,
    Declined,
    Halt,
    MemberView,
    Outcome,
    Pulse,
    ReleaseState,
    Resumption,
    Terms,
    TrialBegun,
    Wake,
)
from serving.coordination.unserved import (
    compaction_to_serve,
    is_time_to_bring_back,
    job_about,
    to_bring_back,
)

log = logging.getLogger(__name__)

PREPARE_S = 120.0
"""Seconds that members have to build a release; after that it is given up."""
ACTOR = "lethe-coordinator"


class Coordinator:
    """Runs as an asyncio Ray actor; the public methods are called remotely."""

    def __init__(self, home: Path, registry: Path | str, terms: Terms) -> None:
        self._home = Home(home, registry)
        self._ledger = wait_for_ledger(self._home)
        self._record = LedgerWriter(self._home, self._ledger, actor=ACTOR)
        state = self._ledger.state
        self._membership = Membership(state.active, terms=terms, suspended=state.suspended)
        self._terms = terms
        self._preparing = -1
        self._trial = _trial_of(state)
        self._changed = asyncio.Condition()
        self._committing = asyncio.Lock()
        self._prepared_one_by_one = asyncio.Lock()
        self._bringing_back = asyncio.Lock()
        self._activated_at: dict[int, float] = {}
        self._exposed: frozenset[str] = frozenset()
        self._housekeeping = asyncio.get_running_loop().create_task(self._keep_house())

    # -- members call these

    async def register(self, member: str) -> int:
        committed = self._membership.register(member)
        log.info("member %s registered at release %d", member, committed)
        return committed

    async def leave(self, member: str) -> None:
        async with self._changed:
            self._membership.leave(member)
            self._changed.notify_all()

    async def heartbeat(
        self, member: str, running: int, silent: bool = False, beat: int = 0
    ) -> Pulse:
        extended = self._membership.heartbeat(member, running, silent=silent, beat=beat)
        if extended or silent:
            async with self._changed:
                self._changed.notify_all()
        return Pulse(self._membership.committed, self._terms.seconds if extended else 0.0)

    async def follow(self, member: str, seen: Wake, wait: float) -> Wake:
        """Long poll: return when there is more to do than `seen`, or after `wait` seconds."""

        def news() -> bool:
            return (
                self._membership.committed > seen.committed
                or self._preparing > seen.prepare
                or self._membership.suspended != seen.suspended
                or self._trial != seen.trial
            )

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(news), wait)
        return Wake(
            committed=self._membership.committed,
            prepare=self._preparing,
            suspended=self._membership.suspended,
            trial=self._trial,
        )

    async def prepared(self, member: str, state: ReleaseState) -> None:
        """Note how far a member is with a release that it was asked to build, or must serve."""
        async with self._changed:
            self._membership.prepared(member, state)
            self._changed.notify_all()

    # -- control calls these

    async def guard(self, job: str, author: Author) -> Outcome:
        """Mask the job's subjects on every replica. That builds nothing, so it prepares nothing."""
        return await self._activate(lambda: self._record.release_for("guard", job, author), author)

    async def adopt(self, job: str, author: Author) -> Outcome:
        """Put the job's adapter on top of the stack that it was trained on.

        Returns `Declined` with stage "stack" when another stack is active by now.
        """
        return await self._activate(
            lambda: self._record.release_for("adapter", job, author), author, prepare=True
        )

    async def try_out(self, job: str, percent: int, author: Author) -> TrialBegun | Declined:
        """Let the job's adapter, on top of the stack that it was trained on, answer `percent` of
        the requests. A trial promises nothing, so this waits for no acknowledgement."""
        release = await self._defined(
            lambda: self._record.release_for("adapter", job, author), prepare=True
        )
        if isinstance(release, Declined):
            return release
        problem = await self._record_trial(
            lambda: self._record.trial(release.number, percent, author)
        )
        return problem or TrialBegun(release.number)

    async def promote(self, release: int, author: Author) -> Outcome:
        """Serve the release on trial for all requests. Returns `Declined` with stage "stack" when
        another release was activated meanwhile: that ended the trial."""
        try:
            if not await self._commit(release, author):
                return Declined("stack", f"release {release} is not on trial any more")
        except RegistryError as error:
            return Declined("registry", str(error))
        return await self.acknowledge(release)

    async def end_trial(self, release: int, detail: str, author: Author) -> Declined | None:
        """Let the active release answer all requests again."""
        return await self._record_trial(lambda: self._record.end_of_trial(release, detail, author))

    async def roll_back(self, to: int, author: Author, instead_of: int | None = None) -> Outcome:
        """Serve release `to`'s adapters again, as a new release, with every guard kept.

        Returns `Declined` with stage "stack" when the active stack is no longer that of release
        `instead_of`.
        """

        def define() -> Release:
            state = self._ledger.refresh()
            if instead_of is not None and (
                state.active_release.adapters != state.releases[instead_of].adapters
            ):
                raise ConflictError("another stack is active by now")
            return self._record.rollback(to, author)

        return await self._activate(define, author, prepare=True)

    async def bring_back(self, author: Author) -> Outcome:
        """Serve the restored subjects again. If the weights have forgotten one, older adapters are
        served; otherwise a smaller mask is enough."""
        async with self._bringing_back:
            state = await asyncio.to_thread(self._ledger.refresh)
            if not to_bring_back(state):
                return await self.acknowledge(state.active)
            return await self._activate(lambda: self._record.way_back(author), author, prepare=True)

    async def suspend(self, author: Author) -> Halt | Declined:
        """Stop all predictions; return when no member can answer. Asking twice is harmless."""
        started = time.monotonic()
        problem = await self._record_suspension("suspended", author)
        if problem is not None:
            return problem
        async with self._changed:
            while not self._membership.quiet:
                if not self._membership.suspended:
                    return Declined("resumed", "serving was resumed meanwhile")
                await self._next_change()
            members = self._membership.stopped()
        ms = (time.monotonic() - started) * 1000
        return Halt(at=time.time(), ms=round(ms, 3), members=members)

    async def resume(self, author: Author) -> Resumption | Declined:
        """Let replicas answer again. Waits until all of them can, for one lease at most."""
        problem = await self._record_suspension("resumed", author)
        if problem is not None:
            return problem
        deadline = time.monotonic() + self._terms.seconds
        async with self._changed:
            while not self._membership.serving and time.monotonic() < deadline:
                await self._next_change()
            now = self._membership.leased_members
        return Resumption(at=time.time(), members=sorted(now))

    async def acknowledge(self, release: int) -> Ack:
        """Wait until `release` is acknowledged, and record who confirmed it."""
        async with self._changed:
            while not self._membership.acknowledged(release):
                await self._next_change()
            members = self._membership.outcome(release)
        now = time.time()
        started = self._activated_at.get(release)
        ms = (time.monotonic() - started) * 1000 if started is not None else 0.0
        if self._ledger.state.confirmed < release:
            await asyncio.to_thread(self._record.confirmation, release, members, ms)
        await asyncio.to_thread(self._record.seen)
        return Ack(release=release, at=now, ms=round(ms, 3), members=members)

    async def members(self) -> dict[str, MemberView]:
        """What is known of each member, for status pages."""
        return self._membership.view()

    # -- the steps of the above

    async def _activate(
        self, define: Callable[[], Release], author: Author, *, prepare: bool = False
    ) -> Outcome:
        """Publish, prepare, activate and acknowledge a release. Starts over when another one was
        activated in between."""
        while True:
            release = await self._defined(define, prepare=prepare)
            if isinstance(release, Declined):
                return release
            try:
                committed = await self._commit(release.number, author)
            except RegistryError as error:
                return Declined("registry", str(error))
            if committed:
                return await self.acknowledge(release.number)

    async def _defined(self, define: Callable[[], Release], *, prepare: bool) -> Release | Declined:
        """Publish a release and, with `prepare`, have every member build it."""
        # Check for replicas before publishing: a caller that waits for them retries often, and each
        # try would leave one more release in the ledger for good.
        nobody = await self._why_none_builds() if prepare else None
        if nobody is not None:
            return nobody
        try:
            release = await asyncio.to_thread(define)
        except ConflictError as error:
            return Declined("stack", str(error))
        except RegistryError as error:
            log.error("a release can't be published: %s", error)
            return Declined("registry", str(error))
        if prepare:
            problems = await self._prepare(release.number)
            if problems:
                detail = "; ".join(f"{who}: {why}" for who, why in problems.items())
                return Declined("prepare", detail)
            nobody = await self._why_none_builds()
        return nobody or release

    async def _why_none_builds(self) -> Declined | None:
        """Why no member could build a release; None if one could. Waits for the grace to end."""
        async with self._changed:
            while not self._membership.settled:
                await self._next_change()
        if self._membership.suspended:
            return Declined("suspended", "serving is suspended, so no replica builds it")
        if not self._membership.leased:
            return Declined("members", "no replica holds a lease, so none could build it")
        return None

    async def _record_trial(self, act: Callable[[], State]) -> Declined | None:
        """Record the beginning or the end of a trial, then tell the members."""
        async with self._committing:
            try:
                await asyncio.to_thread(act)
            except ConflictError as error:
                return Declined("stack", str(error))
            except RegistryError as error:
                return Declined("registry", str(error))
            finally:
                # Tell them after a failure too: the record may be in the ledger nevertheless.
                await self._tell_trial()
        return None

    async def _tell_trial(self) -> None:
        async with self._changed:
            self._trial = _trial_of(self._ledger.state)
            self._changed.notify_all()

    async def _commit(self, release: int, author: Author) -> bool:
        """Record the activation of `release`, then tell the members. False when another release is
        active by now; `release` must be published again on top of that one."""
        async with self._committing:
            try:
                await asyncio.to_thread(self._record.activation, release, author)
            except ConflictError as error:
                log.info("release %d: %s", release, error)
                return False
            except RegistryError as error:
                # The record may be in the ledger nevertheless; then the release is active.
                log.error("release %d: %s", release, error)
                if (await asyncio.to_thread(self._ledger.refresh)).active < release:
                    raise
            await self._tell_activation(release)
        return True

    async def _tell_activation(self, release: int) -> None:
        self._activated_at[release] = time.monotonic()
        async with self._changed:
            self._membership.commit(release)
            self._trial = _trial_of(self._ledger.state)
            self._changed.notify_all()

    async def _prepare(self, release: int) -> dict[str, str]:
        """Have every member under a lease build `release`; return what went wrong, by member.

        Ends early when a newer release is activated meanwhile, since `release` can't be activated
        after that.
        """
        deadline = time.monotonic() + PREPARE_S
        async with self._prepared_one_by_one, self._changed:
            self._preparing = release
            self._changed.notify_all()
            while self._membership.unprepared(release) or not self._membership.settled:
                if self._membership.committed > release:
                    return {}
                if self._membership.problems(release):
                    break
                if time.monotonic() > deadline:
                    late = self._membership.unprepared(release)
                    return dict.fromkeys(late, f"not built within {PREPARE_S:g} s")
                await self._next_change()
            return self._membership.problems(release)

    async def _next_change(self) -> None:
        """Wait for a change, with `_changed` held. Nobody notifies when a lease runs out, so this
        also returns when the next one does."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), self._membership.next_change() + 0.01)

    async def _record_suspension(self, wanted: ServingState, author: Author) -> Declined | None:
        """Record that serving is suspended or resumed, then tell the members."""
        async with self._committing:
            try:
                await asyncio.to_thread(self._record.suspension, wanted, author)
            except RegistryError as error:
                # The record may be in the ledger nevertheless.
                log.error("%s: %s", wanted, error)
                state = await asyncio.to_thread(self._ledger.refresh)
                if state.suspended is not (wanted == "suspended"):
                    return Declined("registry", str(error))
            await self._tell_suspension(wanted == "suspended")
        await asyncio.to_thread(self._record.seen)
        return None

    async def _tell_suspension(self, suspended: bool) -> None:
        async with self._changed:
            self._membership.suspend(suspended)
            self._changed.notify_all()

    async def _keep_house(self) -> None:
        """Once a lease: finish what a predecessor or a failure left; drop silent members."""
        while True:
            try:
                await self._tidy(await asyncio.to_thread(self._ledger.refresh))
                await asyncio.to_thread(self._record.seen)
            except Exception as error:
                # Any error may come here; the next round tries again. Serving goes on meanwhile,
                # since leases depend on the committed release and not on this task.
                log.error("housekeeping failed (%s): %s", type(error).__name__, error)
            await asyncio.sleep(self._terms.seconds)
            self._membership.drop_silent(self._terms.seconds * 4)

    async def _tidy(self, state: State) -> None:
        if state.active > self._membership.committed:
            async with self._committing:
                # Checked again under the lock. The activation is in the ledger, but the storage
                # failed before this process knew, so the members were not told.
                if (active := self._ledger.state.active) > self._membership.committed:
                    await self._tell_activation(active)
        if self._trial != _trial_of(state):
            await self._tell_trial()
        if state.suspended != self._membership.suspended:  # another process recorded it
            async with self._committing:
                await self._tell_suspension(self._ledger.state.suspended)
        if state.active > state.confirmed and state.active == self._membership.committed:
            await self.acknowledge(state.active)
        await self._mask_exposed(state)
        rested = is_time_to_bring_back(state, now=utc_now(), every_s=self._terms.seconds)
        if rested and to_bring_back(state) and not state.suspended:
            author = Author(ACTOR, "a restoration that was cut off", f"tidy-{state.seq}")
            outcome = await self.bring_back(author)
            if isinstance(outcome, Declined):
                log.warning("restored subjects are not served yet: %s", outcome.detail)
        adapter = compaction_to_serve(state)
        if adapter is not None and not state.suspended and state.trial is None:
            await self._serve_compaction(adapter)

    async def _mask_exposed(self, state: State) -> None:
        """Mask the subjects that came under erasure a round ago or earlier and are in no guard yet.

        Either control died before it asked for their guard, or the guard failed, and the operator
        was told that the server keeps trying.
        """
        exposed = state.erasing - state.active_release.guard
        overdue, self._exposed = exposed & self._exposed, exposed
        if overdue:
            job = job_about(state, overdue)
            outcome = await self.guard(job.id, Author(job.actor, job.reason, job.request_id))
            if isinstance(outcome, Declined):
                log.error("%s is not masked yet: %s", job.id, outcome.detail)

    async def _serve_compaction(self, adapter: str) -> None:
        """Serve a compaction: one adapter in place of the stack that it was folded from."""
        author = Author(ACTOR, "one adapter for the stack", f"compaction-{adapter[-12:]}")
        outcome = await self._activate(
            lambda: self._record.compaction(adapter, author),
            author,
            prepare=True,
        )
        if isinstance(outcome, Declined):
            log.warning("the compaction %s is not served: %s", adapter, outcome.detail)


def _trial_of(state: State) -> int:
    """The trial that is on, as the sequence number of the record that began it; 0: none."""
    return 0 if state.trial is None else state.trial.seq
