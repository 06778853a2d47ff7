"""Upkeep: taking away what crashes left. Nothing that a record names is ever touched."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from registry.log.ledger import BLOB_KEY, BLOB_PREFIX, Ledger, blob_key
from registry.records.bodies import blobs_of
from registry.schema import SUBJECT
from registry.store.contract import Store
from registry.subjects.subject_map import PREFIX

GRACE = timedelta(hours=24)
_KEPT = re.compile(rf"{PREFIX}({SUBJECT.pattern})/.+")


@dataclass(frozen=True, slots=True)
class Collection:
    """What was taken away (or would be): keys of blobs, names of temporary files, and keys of
    `uploads`, files of a subject that no record names."""

    blobs: tuple[str, ...]
    leftovers: tuple[str, ...]
    uploads: tuple[str, ...]


def collect(
    store: Store,
    ledger: Ledger,
    *,
    now: datetime,
    grace: timedelta = GRACE,
    dry_run: bool = False,
) -> Collection:
    """Delete what is older than `grace` and that no record names: blobs, images that came with a
    request which was cut off before it was recorded, and temporary files.

    The grace is what protects a publisher between its blobs and its record: it must be far longer
    than any publish takes. With `dry_run` nothing is deleted. The subject map keeps its entries:
    they are what the next request for the same class finds.

    Raises: whatever `Ledger.refresh` does; nothing is deleted unless every record could be read.
    """
    before = now - grace
    # Listed before the log is read: whatever is named by then is found to be.
    old = [key for key in store.older(BLOB_PREFIX, before=before) if BLOB_KEY.fullmatch(key)]
    uploads = [key for key in store.older(PREFIX, before=before) if _KEPT.fullmatch(key)]
    state = ledger.refresh()
    named = {
        blob_key(digest) for entry in ledger.records() for digest in blobs_of(entry.record.body)
    }

    def taken(keys: Iterable[str]) -> tuple[str, ...]:
        return tuple(key for key in keys if dry_run or store.delete_older(key, before=before))

    return Collection(
        blobs=taken(key for key in old if key not in named),
        leftovers=store.leftovers(before=before, delete=not dry_run),
        uploads=taken(key for key in uploads if _subject_of(key) not in state.subjects),
    )


def _subject_of(key: str) -> str:
    return key.removeprefix(PREFIX).partition("/")[0]
