"""What the log says about releases: what is in one, which records made it, how two differ."""

from dataclasses import dataclass

from registry.errors import NotFoundError
from registry.fold.state import AdapterEntry, Release, State
from registry.log.ledger import Ledger
from registry.records.record import Entry
from registry.records.releases import Activated, Confirmed


@dataclass(frozen=True, slots=True)
class ReleaseHistory:
    """A release, its adapters (lowest first), and the records that made it what it is.

    Release 0, the bare backbone, has no record.
    """

    release: Release
    adapters: tuple[AdapterEntry, ...]
    defined: Entry | None
    activated: Entry | None
    confirmed: Entry | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What release `after` has and lacks compared with release `before`."""

    before: int
    after: int
    adapters_added: tuple[str, ...]
    adapters_removed: tuple[str, ...]
    guard_added: tuple[str, ...]
    guard_removed: tuple[str, ...]


def release_history(ledger: Ledger, number: int) -> ReleaseHistory:
    """Look a release up in the log as of the last refresh.

    Raises: NotFoundError (no such release), whatever `Ledger.records` does.
    """
    state = ledger.state
    release = _release(state, number)
    defined = activated = confirmed = None
    for entry in ledger.records(release.seq) if release.seq else ():
        match entry.record.body:
            case Activated(release=found) if found == number:
                activated = entry
            case Confirmed(release=found) if found == number:
                confirmed = entry
        if entry.record.seq == release.seq:
            defined = entry
    adapters = tuple(state.adapters[adapter] for adapter in release.adapters)
    return ReleaseHistory(release, adapters, defined, activated, confirmed)


def difference(state: State, before: int, after: int) -> Difference:
    """Raises: NotFoundError (no such release)."""
    old, new = _release(state, before), _release(state, after)
    return Difference(
        before=before,
        after=after,
        adapters_added=tuple(a for a in new.adapters if a not in old.adapters),
        adapters_removed=tuple(a for a in old.adapters if a not in new.adapters),
        guard_added=tuple(sorted(new.guard - old.guard)),
        guard_removed=tuple(sorted(old.guard - new.guard)),
    )


def _release(state: State, number: int) -> Release:
    if number not in state.releases:
        raise NotFoundError(
            f"there is no release {number}; there are 0 (the bare backbone) to {state.last_release}"
        )
    return state.releases[number]
