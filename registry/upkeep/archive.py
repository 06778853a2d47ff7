"""A registry as one file: a tar (POSIX ustar) of its records and the blobs that they name.

Its bytes depend only on the registry's content: equal registries have equal archives. An import
verifies each member before it stores it. The subject map is not part of an archive.

    archive.json      {"blobs": n, "head": digest, "seq": n}: what is to follow
    blobs/sha256/...  in the order of their names
    format.json
    log/...           in their order
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from registry.errors import AlreadyExistsError, ConflictError, FormatError, IntegrityError
from registry.fold.rules import apply
from registry.fold.state import State
from registry.log.ledger import BLOB_KEY, FORMAT, FORMAT_KEY, Ledger, blob_key, log_key, read_format
from registry.records.bodies import blobs_of
from registry.records.record import digest_of, open_record
from registry.schema import DIGEST, Fields, Json, decode_json, encode_json
from registry.signing.envelope import MAX_ENVELOPE_BYTES
from registry.signing.keys import Trust
from registry.store.contract import Store

MANIFEST_KEY = "archive.json"
MAX_BLOB_BYTES = 8 * 1024**3


def export_archive(store: Store, ledger: Ledger, *, target: BinaryIO) -> State:
    """Verify the registry and write it, up to its newest record, to `target`. Returns its state.

    Raises: whatever `Ledger.refresh` does, NotFoundError or IntegrityError for a blob.
    """
    state = ledger.refresh()
    records: list[str] = []
    sizes: dict[str, int | None] = {}
    for entry in ledger.records():
        records.append(entry.digest)
        sizes |= blobs_of(entry.record.body)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        manifest: dict[str, Json] = {"blobs": len(sizes), "head": state.head, "seq": len(records)}
        _add(tar, MANIFEST_KEY, encode_json(manifest))
        for digest in sorted(sizes):
            _add(tar, blob_key(digest), ledger.get_blob(digest, size=sizes[digest]))
        _add(tar, FORMAT_KEY, FORMAT)
        for seq, digest in enumerate(records, start=1):
            data = store.read(log_key(seq), at_most=MAX_ENVELOPE_BYTES + 1)
            if digest_of(data) != digest:
                raise IntegrityError("changed during the export", check="prev", where=log_key(seq))
            _add(tar, log_key(seq), data)
    return state


def import_archive(source: BinaryIO, store: Store, *, trust: Trust) -> State:
    """Verify an archive and store what it holds. Returns the state that its records add up to.

    The store may be empty, or have the first records of the same log, so a failed import can be
    repeated. Nothing unverified is ever stored.

    Raises: IntegrityError, TrustError, FormatError (the archive; `where` is the member),
    ConflictError (the store has another log), StoreError.
    """
    state = State()
    seen: set[str] = set()
    formatted = False
    members = _members(source)
    name, data = next(members, ("", b""))
    manifest = _Manifest(name, data)
    for name, data in members:
        if match := BLOB_KEY.fullmatch(name):
            digest = f"sha256:{match[2]}"
            if digest_of(data) != digest:
                raise IntegrityError("its bytes have another digest", check="sha256", where=name)
            seen.add(digest)
        elif name == FORMAT_KEY:
            read_format(data)
            formatted = True
        elif formatted and name == log_key(state.seq + 1):
            state = _next_state(state, data, trust=trust, name=name, blobs=seen)
        else:
            raise FormatError(
                f"expected a blob, {FORMAT_KEY} and then {log_key(state.seq + 1)}",
                check="archive",
                where=name[:200],
            )
        _store(store, name, data)
    manifest.check(state, blobs=len(seen))
    return state


class _Manifest:
    """The first member: what the archive says that it holds."""

    def __init__(self, name: str, data: bytes) -> None:
        if name != MANIFEST_KEY:
            raise FormatError(
                f"expected {MANIFEST_KEY} first, found {name[:60]!r}: this is no archive of a "
                "registry",
                check="archive",
                where="archive",
            )
        fields = Fields(decode_json(data, where=name), where=name)
        self.blobs = fields.integer("blobs", at_least=0)
        self.seq = fields.integer("seq", at_least=0)
        self.head = fields.text("head", DIGEST)
        fields.finish()

    def check(self, state: State, *, blobs: int) -> None:
        if (state.seq, state.head, blobs) != (self.seq, self.head, self.blobs):
            raise IntegrityError(
                f"expected {self.seq} records that end with {self.head} and {self.blobs} blobs, "
                f"found {state.seq}, {state.head} and {blobs}: the archive was cut short or mixed",
                check="archive",
                where=MANIFEST_KEY,
            )


def _next_state(state: State, data: bytes, *, trust: Trust, name: str, blobs: set[str]) -> State:
    entry = open_record(data, trust=trust, seq=state.seq + 1, prev=state.head, where=name)
    missing = blobs_of(entry.record.body).keys() - blobs
    if missing:
        raise IntegrityError(
            f"names the blob {min(missing)}, which the archive lacks", check="presence", where=name
        )
    try:
        return apply(state, entry.record, digest=entry.digest)
    except ConflictError as error:
        raise IntegrityError(str(error), check="fold", where=name) from error


def _members(source: BinaryIO) -> Iterator[tuple[str, bytes]]:
    with _readable_tar(), tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            limit = MAX_BLOB_BYTES if BLOB_KEY.fullmatch(member.name) else MAX_ENVELOPE_BYTES
            file = tar.extractfile(member) if member.isreg() and member.size <= limit else None
            if file is None:
                raise FormatError(
                    f"expected a plain file of at most {limit} bytes",
                    check="archive",
                    where=member.name[:200],
                )
            yield member.name, file.read()


@contextmanager
def _readable_tar() -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise FormatError(
            f"not a whole tar archive: {error}", check="archive", where="archive"
        ) from None


def _store(store: Store, key: str, data: bytes) -> None:
    try:
        store.create(key, data)
    except AlreadyExistsError:
        if store.read(key, at_most=len(data) + 1) != data:
            raise ConflictError(
                f"{key} exists with other content: import into an empty place, or into an earlier "
                "copy of the same registry"
            ) from None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # mode 0644, no owner, no time
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
