"""What the coordinator writes into the ledger, one method an act. It decides nothing.

All raise as `registry.publish.jobs`.
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
    begin_canary,
    confirm_release,
    end_canary,
    publish_release,
    roll_back,
)
from registry.records.declarations import ServingState
from serving.config.home import Home, note_seen, signer
from serving.coordination.messages import CONFIRMED, Author, How
from serving.coordination.unserved import job_about, to_bring_back, way_back

log = logging.getLogger(__name__)


class Recording:
    """The ledger with the keys of whoever activates releases."""

    def __init__(self, home: Home, ledger: Ledger, *, actor: str) -> None:
        """`actor`: in whose name confirmations are recorded."""
        self._home = home
        self._ledger = ledger
        self._actor = actor
        self._operator = signer(home, "operator")
        self._publisher = signer(home, "publisher")

    def release_for(self, kind: Literal["guard", "adapter"], job: str, author: Author) -> Release:
        """Define a release for a job on the active one."""
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
        """Define the active release anew, by one adapter that stands for its stack."""
        return publish_compaction(
            self._ledger,
            self._publisher,
            adapter=adapter,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def way_back(self, author: Author) -> Release:
        """Define a release that conceals nobody whose erasure was ended."""
        state = self._ledger.refresh()
        waiting = to_bring_back(state)
        if not waiting:
            raise ConflictError("nobody has to be brought back any more")
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
        """Have a release answer `percent` of the requests."""
        return begin_canary(
            self._ledger,
            self._operator,
            release=release,
            percent=percent,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def end_of_trial(self, release: int, detail: str, author: Author) -> State:
        """Have the active release answer all requests again."""
        return end_canary(
            self._ledger,
            self._operator,
            release=release,
            detail=detail,
            actor=author.actor,
            reason=author.reason,
            request_id=author.request_id,
        )

    def suspension(self, wanted: ServingState, author: Author) -> None:
        """Say that serving is suspended or resumed, unless the ledger says so already."""
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
        """Say who confirmed. Raises nothing: the acknowledgement is a fact about the replicas."""
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
        """Raise the high-water mark, before anything is acknowledged: an older copy of the registry
        would take it back. Raises nothing."""
        try:
            note_seen(self._home, self._ledger, self._operator)
        except RegistryError as error:
            log.error("the high-water mark was not raised: %s", error)
