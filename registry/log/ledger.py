"""The ledger: a verified view of the log that only moves forward, and the one way to extend it.

A commit is a create-if-absent of the next number, as in Delta Lake's transaction log: of two
writers one wins, and the other reads what was added, makes its record anew and tries again.
There is no mutable head: the state is what the records add up to.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from registry.errors import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    NotFoundError,
)
from registry.fold.rules import apply
from registry.fold.state import State
from registry.records.record import (
    GENESIS,
    Draft,
    Entry,
    Record,
    digest_of,
    open_record,
    seal_record,
)
from registry.schema import DIGEST, Fields, decode_written, encode_json
from registry.signing.envelope import MAX_ENVELOPE_BYTES
from registry.signing.keys import Signer, Trust
from registry.store.contract import Store

FORMAT_KEY = "format.json"
FORMAT_NAME = "lethe-registry"
FORMAT_VERSION = 1
LOG_PREFIX = "log/"
BLOB_PREFIX = "blobs/sha256/"
BLOB_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
LOG_KEY = re.compile(r"log/([0-9]{20})\.json")


def log_key(seq: int) -> str:
    return f"{LOG_PREFIX}{seq:020d}.json"


def blob_key(digest: str) -> str:
    """The key of a blob by its digest "sha256:<hex>". Raises: ValueError (not a digest)."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"expected a digest like sha256:<64 hex digits>, found {digest!r}")
    hexadecimal = digest.removeprefix("sha256:")
    return f"{BLOB_PREFIX}{hexadecimal[:2]}/{hexadecimal}"


def utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """One process's view of a registry. Thread-safe; make one in each process.

    Invariant: `state` is the fold of records 1 to `state.seq`, each of which passed every check,
    and it never goes back to an earlier one.
    """

    def __init__(
        self,
        store: Store,
        trust: Trust,
        *,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
        patience_s: float = 60.0,
        known: State | None = None,
    ) -> None:
        """`patience_s`: how long `append` keeps trying while other writers are faster. `known`: an
        earlier state of this log, verified with the same trust, to start from.
        """
        self._store = store
        self._trust = trust
        self._clock = clock
        self._rng = rng if rng is not None else random.Random()
        self._patience_s = patience_s
        self._lock = threading.RLock()  # of the state
        self._appending = threading.RLock()  # one append at a time in this process
        self._state = known if known is not None else State()
        self._format_seen = False
        self._listed = False

    @property
    def state(self) -> State:
        """The state as of the last `refresh` or `append`."""
        return self._state

    def refresh(self, *, each: Callable[[Entry], None] | None = None) -> State:
        """Read and verify the new records, call `each` with every one, and return the new state.

        A changed trust file is read again first. The checks of each record, in order: size,
        envelope, signature and role, prev, seq, schema, fold. The first failure is raised, and
        the state stays at the last good record.

        Raises: IntegrityError (also check "replay": the log is an older or another copy, and
        "gap": a record is missing), TrustError, FormatError, StoreError.
        """
        with self._lock:
            self._trust = self._trust.current()
            self._check_format()
            self._check_not_replaced()
            # Reading ends at the first missing number. Listing once shows if records follow it.
            listed = 0 if self._listed else self._highest_listed()
            while (data := self._read_log(self._state.seq + 1)) is not None:
                entry = self._advance(data)
                if each is not None:
                    each(entry)
            if listed > self._state.seq:
                raise IntegrityError(
                    f"missing, though {log_key(listed)} exists",
                    check="gap",
                    where=log_key(self._state.seq + 1),
                )
            self._listed = True
            return self._state

    def append(
        self,
        make: Callable[[State], Draft | None],
        signer: Signer,
        *,
        blobs: Mapping[str, bytes] | None = None,
    ) -> State:
        """Add the record that `make` drafts from the current state, and return the state after it.

        `make` is called again with the newer state whenever another writer was first. It may raise,
        or return None when there is nothing to add. When this returns, the record is durable, and
        so are the `blobs` (by digest) that it names. They are stored before the record, and not
        at all when there is nothing to add or the draft is refused.

        Raises: ConflictError (the record can't follow the state, or other writers were faster for
        `patience_s`), TrustError (the signer may not sign this type), FormatError (the draft),
        whatever `make` raises, and whatever `refresh` raises.
        """
        deadline = time.monotonic() + self._patience_s
        attempt = 0
        unstored = dict(blobs or {})
        # By hand, not with tenacity: each try goes on with the blobs that the last one left over.
        while True:
            with self._appending:
                state = self.refresh()
                draft = make(state)
                if draft is None:
                    return state
                data, entry = self._sealed(draft, state, signer)
                after = apply(state, entry.record, digest=entry.digest)
                self._ensure_format()
                key = log_key(entry.record.seq)
                unstored, taken = self._create(unstored, then=(key, data))
                if not taken:
                    with self._lock:
                        # Otherwise another thread has read this record already, or more.
                        if self._state is state:
                            self._state = after
                    return after
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"other writers were faster {attempt + 1} times in {self._patience_s:g} s; "
                    "try again later"
                )
            attempt += 1
            time.sleep(self._rng.uniform(0.0, min(0.05, 0.001 * 2 ** min(attempt, 10))))

    def records(self, start: int = 1) -> Iterator[Entry]:
        """The records from number `start` on, up to `state.seq`, each verified again.

        Raises: as `refresh`.
        """
        end = self._state
        if start > end.seq:
            return
        prev = GENESIS if start <= 1 else digest_of(self._expect_log(start - 1))
        for seq in range(max(start, 1), end.seq + 1):
            where = log_key(seq)
            entry = open_record(
                self._expect_log(seq), trust=self._trust, seq=seq, prev=prev, where=where
            )
            prev = entry.digest
            if seq == end.seq and prev != end.head:
                raise _replaced(where, end.head, prev)
            yield entry

    def put_blob(self, data: bytes) -> str:
        """Store a blob durably and return its digest; storing the same bytes again is free.

        Raises: IntegrityError when a blob of that name exists with other bytes.
        """
        return self.put_blobs([data])[0]

    def put_blobs(self, blobs: Sequence[bytes]) -> list[str]:
        """`put_blob` for several at once. Takes about as long as the largest alone."""
        digests = [digest_of(data) for data in blobs]
        unstored = dict(zip(digests, blobs, strict=True))
        while unstored:
            unstored, _ = self._create(unstored, then=None)
        return digests

    def _create(
        self, blobs: Mapping[str, bytes], *, then: tuple[str, bytes] | None
    ) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """Store blobs by digest, and then the object `then`, unless a name is taken by then.

        Returns the blobs whose names were taken, to be tried again, and all keys that were taken.
        """
        # An existing blob is touched first and then read: `upkeep.collect` deletes old blobs that
        # no record names, and the record that will name this one isn't there yet.
        new = {d: data for d, data in blobs.items() if not self._renewed(d, len(data))}
        taken = self._store.create_all({blob_key(d): b for d, b in new.items()}, then=then)
        return {d: data for d, data in new.items() if blob_key(d) in taken}, taken

    def _renewed(self, digest: str, size: int) -> bool:
        """Touch and check a blob; False if there is none. Raises: as `put_blob`."""
        try:
            self._store.touch(blob_key(digest))
            self.get_blob(digest, size=size)
        except NotFoundError:
            return False
        return True

    def get_blob(self, digest: str, *, size: int | None = None) -> bytes:
        """A blob's bytes, checked against its digest and, where given, its size.

        Raises: NotFoundError, IntegrityError (check "size" or "sha256").
        """
        key = blob_key(digest)
        data = self._store.read(key, at_most=None if size is None else size + 1)
        if size is not None and len(data) != size:
            found = f"{len(data)}" if len(data) < size else f"more than {size}"
            raise IntegrityError(
                f"expected {size} bytes, found {found}; restore the file from a copy",
                check="size",
                where=key,
            )
        found = digest_of(data)
        if found != digest:
            raise IntegrityError(
                f"its bytes have the digest {found}; restore the file from a copy",
                check="sha256",
                where=key,
            )
        return data

    def _advance(self, data: bytes) -> Entry:
        state = self._state
        where = log_key(state.seq + 1)
        entry = open_record(
            data, trust=self._trust, seq=state.seq + 1, prev=state.head, where=where
        )
        try:
            self._state = apply(state, entry.record, digest=entry.digest)
        except ConflictError as error:
            raise IntegrityError(str(error), check="fold", where=where) from error
        return entry

    def _sealed(self, draft: Draft, state: State, signer: Signer) -> tuple[bytes, Entry]:
        """The record and its bytes, checked as every reader will check them."""
        record = Record(
            seq=state.seq + 1,
            prev=state.head,
            at=self._clock(),
            actor=draft.actor,
            reason=draft.reason,
            request_id=draft.request_id,
            body=draft.body,
        )
        # First, because a conflict with the state is the more useful error.
        apply(state, record, digest=GENESIS)
        data = seal_record(record, signer)
        entry = open_record(
            data, trust=self._trust, seq=record.seq, prev=record.prev, where="new record"
        )
        return data, entry

    def _read_log(self, seq: int) -> bytes | None:
        try:
            return self._store.read(log_key(seq), at_most=MAX_ENVELOPE_BYTES + 1)
        except NotFoundError:
            return None

    def _expect_log(self, seq: int) -> bytes:
        data = self._read_log(seq)
        if data is None:
            raise IntegrityError("missing", check="gap", where=log_key(seq))
        return data

    def _highest_listed(self) -> int:
        keys = reversed(self._store.list(LOG_PREFIX))  # sorted by number
        return next((int(match[1]) for key in keys if (match := LOG_KEY.fullmatch(key))), 0)

    def _check_not_replaced(self) -> None:
        """The record that the state ends with must still be there, unchanged."""
        state = self._state
        if state.seq == 0:
            return
        data = self._read_log(state.seq)
        found = "nothing" if data is None else digest_of(data)
        if found != state.head:
            raise _replaced(log_key(state.seq), state.head, found)

    def _check_format(self) -> None:
        if self._format_seen:
            return
        try:
            data = self._store.read(FORMAT_KEY, at_most=1024)
        except NotFoundError:
            if self._read_log(1) is None:
                return
            try:  # the first writer may have stored both since then, this one first
                data = self._store.read(FORMAT_KEY, at_most=1024)
            except NotFoundError:
                raise IntegrityError(
                    "missing, though the log has records", check="format", where=FORMAT_KEY
                ) from None
        read_format(data)
        self._format_seen = True

    def _ensure_format(self) -> None:
        if self._format_seen:
            return
        try:
            self._store.create(FORMAT_KEY, FORMAT)
        except AlreadyExistsError:
            self._check_format()
        self._format_seen = True


FORMAT = encode_json({"format": FORMAT_NAME, "version": FORMAT_VERSION})


def read_format(data: bytes) -> None:
    """Check the bytes of format.json. Raises: FormatError."""
    fields = Fields(decode_written(data, where=FORMAT_KEY), where=FORMAT_KEY)
    name, version = fields.choice("format", (FORMAT_NAME,)), fields.integer("version", at_least=1)
    if version != FORMAT_VERSION:
        fields.refuse(
            "version",
            f"this version of {name} reads {FORMAT_VERSION}, found {version}; upgrade",
        )
    fields.finish()


def _replaced(where: str, expected: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"this log was seen to have {expected} here and now has {found}: an older copy or another "
        "log was put in its place; nothing of it is used",
        check="replay",
        where=where,
    )
