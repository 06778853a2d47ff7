"""Deleting what crashes left. Nothing that a record names is ever deleted."""

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
    """What was deleted (or would be): keys of blobs, names of temporary files, and keys of
    `uploads`, which are files of a subject that no record names."""

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
    """Delete what is older than `grace` and named by no record: blobs, temporary files, and images
    whose request was cut off before it was recorded.

    The grace protects a publisher that has stored its blobs but not its record yet, so it must be
    far longer than any publish takes. With `dry_run` nothing is deleted. The subject map keeps its
    entries, because the next request for the same class uses them.

    Raises: whatever `Ledger.refresh` does. Nothing is deleted unless every record could be read.
    """
    before = now - grace
    # Listed before the log is read, so that the log shows every record that names one of these.
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
