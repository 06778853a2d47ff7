"""What the coordinator writes into the ledger: one method for each kind of record.

It makes no decisions. Unless a method says otherwise, it raises as the functions of
`registry.publish` that it calls: `ConflictError` when the ledger's state forbids the record, and
other `RegistryError`s.
"""

from __future__ import annotations

import logging
from typing import Literal

from registry.errors import ConflictError, RegistryError
from registry.fold.state import Release, State
from registry.log.ledger import Ledger
from registry.publish.compaction import publish_compaction
from registry.publish.declarations import record_suspension
from registry.publish.releases import (
    activate_release,
    begin_trial,
    confirm_release,
    end_trial,
    publish_release,
    roll_back,
)
from registry.records.declarations import ServingState
from serving.config.home import Home, note_seen, signer
from serving.coordination.messages import CONFIRMED, Author, How
from serving.coordination.unserved import job_about, to_bring_back, way_back

log = logging.getLogger(__name__)


class LedgerWriter:
    """Writes records, signed with the keys of the operator and the publisher."""

    def __init__(self, home: Home, ledger: Ledger, *, actor: str) -> None:
        """`actor`: the name in the records of confirmations."""
        self._home = home
        self._ledger = ledger
        self._actor = actor
        self._operator = signer(home, "operator")
        self._publisher = signer(home, "publisher")

    def release_for(self, kind: Literal["guard", "adapter"], job: str, author: Author) -> Release:
        """Define a release for a job on top of the active one."""
        return publish_release(
            self._ledger,
            self._publisher,
            kind=kind,
            job=job,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def compaction(self, adapter: str, author: Author) -> Release:
        """Define a release that serves one adapter in place of the active stack."""
        return publish_compaction(
            self._ledger,
            self._publisher,
            adapter=adapter,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def way_back(self, author: Author) -> Release:
        """Define a release that conceals no restored subject. Raises `ConflictError` when no
        subject waits for that any more."""
        state = self._ledger.refresh()
        waiting = to_bring_back(state)
        if not waiting:
            raise ConflictError("no restored subject waits to be served again")
        to = way_back(state)
        if to is None:
            return self.release_for("guard", job_about(state, waiting).id, author)
        return self.rollback(to, author)

    def rollback(self, to: int, author: Author) -> Release:
        """Define a release with the adapters of release `to`."""
        return roll_back(
            self._ledger,
            self._operator,
            to=to,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def activation(self, release: int, author: Author) -> None:
        """Make a release the active one."""
        activate_release(
            self._ledger,
            self._operator,
            release=release,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def trial(self, release: int, percent: int, author: Author) -> State:
        """Begin the trial of a release with `percent` of the requests."""
        return begin_trial(
            self._ledger,
            self._operator,
            release=release,
            percent=percent,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def end_of_trial(self, release: int, detail: str, author: Author) -> State:
        """End the trial of a release; `detail` says why."""
        return end_trial(
            self._ledger,
            self._operator,
            release=release,
            detail=detail,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def suspension(self, wanted: ServingState, author: Author) -> None:
        """Record that serving is suspended or resumed, unless the ledger says so already."""
        if self._ledger.refresh().suspended is (wanted == "suspended"):
            return
        record_suspension(
            self._ledger,
            self._operator,
            state=wanted,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def confirmation(self, release: int, members: dict[str, How], ms: float) -> None:
        """Record who confirmed `release`, and that it took `ms` milliseconds.

        Raises nothing: the acknowledgement is true whether or not it is recorded.
        """
        try:
            confirm_release(
                self._ledger,
                self._operator,
                release=release,
                members=members,
                ms=ms,
                actor=self._actor,
                reason=f"{sum(how == CONFIRMED for how in members.values())} confirmed",
                request_id=self._ledger.state.releases[release].request_id,
            )
        except ConflictError:
            log.info("release %d is confirmed already", release)
        except RegistryError as error:
            log.error("the confirmation of release %d was not recorded: %s", release, error)

    def seen(self) -> None:
        """Raise the high-water mark to the ledger's newest record. Raises nothing.

        Called before an acknowledgement, so that an older copy of the registry, which lacks what
        was acknowledged, is noticed.
        """
        try:
            note_seen(self._home, self._ledger, self._operator)
        except RegistryError as error:
            log.error("the high-water mark was not raised: %s", error)
