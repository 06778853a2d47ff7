"""Verification of a whole registry: every record and every blob, offline, on any copy.

A reader stops at the first problem. This goes on, so that one run reports every problem that it
can find. It changes nothing.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from registry.errors import CheckError, IntegrityError, NotFoundError
from registry.log.highwater import Mark, another_log, older_copy
from registry.log.ledger import BLOB_KEY, LOG_KEY, Ledger, blob_key
from registry.records.bodies import blobs_of
from registry.records.record import Entry
from registry.signing.keys import Trust
from registry.store.contract import Store
from registry.subjects.subject_map import SubjectMap

_OTHER_KEY = re.compile(
    r"format\.json|subjects/.*\.json|subjects/[0-9a-f]{32}/(?:images|prototypes)/.*"
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. The registry is good when there are no `problems`.

    `seq` and `head` are those of the last good record. `orphans` are the keys of blobs that no
    record names (left by a crash, or of a publish under way), `strays` the keys of objects that
    don't belong to a registry. Both are harmless.
    """

    seq: int
    head: str
    blobs: int
    blob_bytes: int
    problems: tuple[CheckError, ...]
    orphans: tuple[str, ...]
    strays: tuple[str, ...]


def verify(
    store: Store,
    trust: Trust,
    *,
    at_least: int = 0,
    mark: Mark | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check the chain of records, every blob, and the subject map if it is in the same store.

    `at_least`: the number of a record that somebody has seen. A log that ends before it is an older
    copy. `mark` names such a record and its digest. `progress` is called with the number of blobs
    done and their total.

    Raises: only StoreError. What is wrong with the data is in the result.
    """
    keys = store.list("")
    problems: list[CheckError] = []
    named: dict[str, int | None] = {}
    ledger = Ledger(store, trust)

    def note(entry: Entry) -> None:
        named.update(blobs_of(entry.record.body))
        if mark is not None and entry.record.seq == mark.seq and entry.digest != mark.head:
            problems.append(another_log(mark, entry.digest))

    with _noting(problems):
        ledger.refresh(each=note)
    state = ledger.state
    whole = not problems
    seen = max(at_least, mark.seq if mark is not None else 0)
    if whole and state.seq < seen:
        problems.append(older_copy(state.seq, seen))
    stored = {f"sha256:{match[2]}" for key in keys if (match := BLOB_KEY.fullmatch(key))}
    digests = sorted(stored.union(named))
    blob_bytes = 0
    for done, digest in enumerate(digests, start=1):
        with _noting(problems):
            blob_bytes += _blob_size(ledger, digest, expected=named.get(digest))
        if progress is not None:
            progress(done, len(digests))
    problems += SubjectMap(store).verify()
    return Verification(
        seq=state.seq,
        head=state.head,
        blobs=len(digests),
        blob_bytes=blob_bytes,
        problems=tuple(problems),
        # What the records after a broken one name is unknown.
        orphans=tuple(map(blob_key, sorted(stored.difference(named)))) if whole else (),
        strays=tuple(key for key in keys if not _belongs(key)),
    )


def _belongs(key: str) -> bool:
    return any(form.fullmatch(key) for form in (LOG_KEY, BLOB_KEY, _OTHER_KEY))


def _blob_size(ledger: Ledger, digest: str, *, expected: int | None) -> int:
    try:
        return len(ledger.get_blob(digest, size=expected))
    except NotFoundError:
        raise IntegrityError(
            "missing, though a record names it; restore the file from a copy",
            check="presence",
            where=blob_key(digest),
        ) from None


@contextmanager
def _noting(problems: list[CheckError]) -> Iterator[None]:
    try:
        yield
    except CheckError as error:
        problems.append(error)
