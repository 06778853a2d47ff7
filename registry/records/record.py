"""Records: the entries of the ledger, and every check between stored bytes and a believed record.

The order of the checks is part of the design: the size is checked before anything is parsed, and
the signature before anything is believed. The rules of the fold come after these checks.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.errors import IntegrityError
from registry.records.bodies import BODIES, SIGNED_BY, TYPE_OF, Body
from registry.schema import DIGEST, Fields, decode_json, encode_json, encode_time
from registry.signing.envelope import Envelope, decode_envelope, encode_envelope
from registry.signing.keys import Signer, Trust

RECORD_VERSION = 1
GENESIS = f"sha256:{'0' * 64}"  # `prev` of the first record

MAX_ACTOR = 128
MAX_REASON = 500
MAX_REQUEST_ID = 128


@dataclass(frozen=True, slots=True)
class Draft:
    """What a writer wants to record. The ledger adds number, chain and time."""

    body: Body
    actor: str
    reason: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the ledger. `prev` is the digest of the stored bytes of the entry before."""

    seq: int
    prev: str
    at: datetime
    actor: str
    reason: str
    request_id: str
    body: Body

    @property
    def type(self) -> str:
        return TYPE_OF[type(self.body)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that passed every check, the digest of its stored bytes, and who signed them."""

    record: Record
    digest: str
    key_id: str


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode_record(record: Record) -> bytes:
    """The payload that is signed: canonical JSON."""
    return encode_json(
        {
            "v": RECORD_VERSION,
            "seq": record.seq,
            "prev": record.prev,
            "at": encode_time(record.at),
            "actor": record.actor,
            "reason": record.reason,
            "request_id": record.request_id,
            "type": record.type,
            "body": record.body.to_json(),
        }
    )


def seal_record(record: Record, signer: Signer) -> bytes:
    """The bytes to store: the signed envelope. Raises: FormatError (too large)."""
    payload = encode_record(record)
    return encode_envelope(Envelope(payload, signer.sign(payload)))


def open_record(data: bytes, *, trust: Trust, seq: int, prev: str, where: str) -> Entry:
    """Check stored bytes as entry number `seq` that follows `prev`, and read them.

    The order: size, envelope, signature and role, `prev`, `seq`, schema.

    Raises: IntegrityError, TrustError, FormatError, each with its `check` and `where`.
    """
    envelope = decode_envelope(data, where=where)
    key = trust.signer_of(envelope.payload, envelope.signature, where=where)
    fields = decode_json(envelope.payload, where=where)
    role = SIGNED_BY.get(str(fields.get("type")))
    if role is not None:
        trust.check_role([key], role=role, at=None, where=where)
    _check_chain(fields, seq=seq, prev=prev, where=where)
    record = _decode_record(fields, where=where)
    if role is not None:
        trust.check_role([key], role=role, at=record.at, where=where)
    return Entry(record, digest_of(data), envelope.signature.key_id)


def _check_chain(fields: Mapping[str, Any], *, seq: int, prev: str, where: str) -> None:
    if fields.get("prev") != prev:
        raise IntegrityError(
            f"expected to follow the record {prev}, found prev {fields.get('prev')!r}: a record "
            "was changed, replaced or comes from another log",
            check="prev",
            where=where,
        )
    if fields.get("seq") != seq:
        raise IntegrityError(
            f"expected record number {seq}, found {fields.get('seq')!r}", check="seq", where=where
        )


def _decode_record(value: Mapping[str, Any], *, where: str) -> Record:
    fields = Fields(value, where=where)
    version = fields.integer("v", at_least=1)
    if version != RECORD_VERSION:
        fields.refuse("v", f"this version reads {RECORD_VERSION}, found {version}; upgrade")
    name = fields.free_text("type", at_most=32)
    if name not in BODIES:
        fields.refuse("type", f"expected one of {', '.join(BODIES)}, found {name!r}; upgrade?")
    body_fields = fields.fields("body")
    record = Record(
        seq=fields.integer("seq", at_least=1),
        prev=fields.text("prev", DIGEST),
        at=fields.time("at"),
        actor=fields.free_text("actor", at_least=1, at_most=MAX_ACTOR),
        reason=fields.free_text("reason", at_most=MAX_REASON),
        request_id=fields.free_text("request_id", at_least=1, at_most=MAX_REQUEST_ID),
        body=BODIES[name].from_fields(body_fields),
    )
    body_fields.finish()
    fields.finish()
    return record
