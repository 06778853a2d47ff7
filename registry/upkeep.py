"""Upkeep: taking away what crashes left. Nothing that a record names is ever touched."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from registry.bodies import blobs_of
from registry.ledger import BLOB_KEY, BLOB_PREFIX, Ledger, blob_key
from registry.store import Store

GRACE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Collection:
    """What was taken away (or would be): keys of blobs, and names of temporary files."""

    blobs: tuple[str, ...]
    leftovers: tuple[str, ...]


def collect(
    store: Store,
    ledger: Ledger,
    *,
    now: datetime,
    grace: timedelta = GRACE,
    dry_run: bool = False,
) -> Collection:
    """Delete blobs that no record names and temporary files, both older than `grace`.

    The grace is what protects a publisher between its blobs and its record: it must be far longer
    than any publish takes. With `dry_run` nothing is deleted.

    Raises: whatever `Ledger.refresh` does; nothing is deleted unless every record could be read.
    """
    before = now - grace
    # Listed before the log is read: whatever is named by then is found to be.
    old = [key for key in store.older(BLOB_PREFIX, before=before) if BLOB_KEY.fullmatch(key)]
    ledger.refresh()
    named = {
        blob_key(digest) for entry in ledger.records() for digest in blobs_of(entry.record.body)
    }
    blobs = [
        key
        for key in old
        if key not in named and (dry_run or store.delete_older(key, before=before))
    ]
    return Collection(tuple(blobs), store.leftovers(before=before, delete=not dry_run))
