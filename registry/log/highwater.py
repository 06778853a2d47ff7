"""The high-water mark: a signed note, kept outside the registry, of the newest record ever seen.

An older copy of a whole registry passes every check of its own. Compared with the mark it fails:
its log ends before the record that was seen, or has another record in that place.

An operator's key signs the mark, under its own payload type, so nobody can forge a lower mark by
writing the file. Nothing prevents deleting the file; then there is no mark.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from registry.errors import IntegrityError, StoreError
from registry.log.ledger import Ledger, log_key, utc_now
from registry.schema import DIGEST, Fields, decode_json, encode_json, encode_time
from registry.signing.envelope import Signature
from registry.signing.keys import Signer, Trust
from registry.store.durable_file import sync_folder, write_durably
from registry.store.file_lock import only_writer

HIGHWATER_FILE = "highwater.json"
HIGHWATER_TYPE = "application/vnd.lethe.highwater.v1+json"
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")


@dataclass(frozen=True, slots=True)
class Mark:
    """Record `seq`, with the digest `head`, was seen at `at`."""

    seq: int
    head: str
    at: datetime


def read_mark(path: Path, trust: Trust) -> Mark | None:
    """The mark, or None if there is none yet.

    Raises: FormatError, TrustError (damaged, forged, or by a retired key), StoreError.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: can't be read: {error.strerror}") from error
    where = str(path)
    fields = Fields(decode_json(data, where=where), where=where)
    mark = Mark(
        seq=fields.integer("seq", at_least=1),
        head=fields.text("head", DIGEST),
        at=fields.time("at"),
    )
    key_id, encoded = fields.text("key_id", _KEY_ID), fields.text("sig", _SIGNATURE)
    fields.finish()
    try:
        signature = Signature(key_id, base64.b64decode(encoded, validate=True))
    except binascii.Error:
        fields.refuse("sig", "expected base64")
    _check_signed(mark, signature, trust, where=where)
    return mark


def raise_mark(
    path: Path,
    *,
    seq: int,
    head: str,
    signer: Signer,
    trust: Trust,
    clock: Callable[[], datetime] = utc_now,
) -> Mark | None:
    """Note that record `seq`, with the digest `head`, was seen, unless a newer one was. Returns the
    mark that is valid afterwards.

    `signer` is an operator's key. An empty log leaves no mark.

    Raises: as `read_mark`; also TrustError when `signer` may not sign this (any more).
    """
    mark = read_mark(path, trust)
    if seq == 0:
        return mark
    if mark is not None and mark.seq >= seq:
        with _os_errors(path):
            sync_folder(path.parent)  # its writer may have been killed before this
        return mark
    # Read again under the lock, which is held until the mark is replaced: it only ever rises.
    with _os_errors(path), only_writer(path):
        mark = read_mark(path, trust)
        if mark is not None and mark.seq >= seq:
            return mark
        mark = Mark(seq=seq, head=head, at=clock())
        signature = signer.sign(_payload(mark), kind=HIGHWATER_TYPE)
        # If the key was retired meanwhile, no reader would accept the mark, and none could start.
        _check_signed(mark, signature, trust, where=str(path))
        write_durably(
            path,
            encode_json(
                {
                    "seq": mark.seq,
                    "head": mark.head,
                    "at": encode_time(mark.at),
                    "key_id": signature.key_id,
                    "sig": base64.b64encode(signature.signature).decode(),
                }
            ),
        )
        return mark


def check_mark(ledger: Ledger, mark: Mark | None, *, path: Path) -> None:
    """Compare a refreshed ledger with what was seen before.

    Raises: IntegrityError (check "replay": an older copy, or another log).
    """
    if mark is None:
        return
    if ledger.state.seq < mark.seq:
        raise older_copy(ledger.state.seq, mark.seq, by=f" ({path}, {encode_time(mark.at)})")
    found = next(ledger.records(mark.seq)).digest
    if found != mark.head:
        raise another_log(mark, found)


def older_copy(last: int, seen: int, *, by: str = "") -> IntegrityError:
    return IntegrityError(
        f"the log ends at record {last}, but record {seen} was seen before{by}: this is an older "
        "copy",
        check="replay",
        where=log_key(seen),
    )


def another_log(mark: Mark, found: str) -> IntegrityError:
    return IntegrityError(
        f"its digest is {found}, but on {encode_time(mark.at)} it was seen to be {mark.head}: an "
        "older copy went on by itself, or this is another log",
        check="replay",
        where=log_key(mark.seq),
    )


def _check_signed(mark: Mark, signature: Signature, trust: Trust, *, where: str) -> None:
    key = trust.signer_of(_payload(mark), signature, where=where, kind=HIGHWATER_TYPE)
    trust.check_role([key], role="operator", at=mark.at, where=where)


def _payload(mark: Mark) -> bytes:
    return encode_json({"seq": mark.seq, "head": mark.head, "at": encode_time(mark.at)})


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: can't be written: {error.strerror}") from error
