"""Which compaction is to be served, read from the ledger's fold.

A compaction is recorded first, and whoever activates releases takes it up from there: so it
survives any crash between the two, and can be made while no server runs.
"""

from __future__ import annotations

from registry.fold.state import State

ATTEMPTS = 3
"""Releases that are defined for a compaction before it is left alone."""


def compaction_to_serve(state: State) -> str | None:
    """The newest adapter that stands for the active stack and was never served, if there is one.

    One that was served and is not now was rolled back, which whoever did it wanted so. One that
    replicas could not build `ATTEMPTS` times is no better the next time.
    """
    stack = state.active_release.adapters
    if state.seal is not None or not stack:
        return None
    waiting = [entry.id for entry in state.adapters.values() if entry.folds == stack]
    for adapter in reversed(waiting):
        releases = releases_of(state, adapter)
        served = any(state.releases[number].activated_at for number in releases)
        if not served and len(releases) < ATTEMPTS:
            return adapter
    return None


def releases_of(state: State, adapter: str) -> list[int]:
    """The releases that have this adapter alone, oldest first."""
    alone = (adapter,)
    return [number for number, release in state.releases.items() if release.adapters == alone]
