"""DSSE v1 envelopes: a payload and its signature, exactly as stored.

Source: secure-systems-lab/dsse, protocol.md (PAE) and envelope.md. One deliberate narrowing: an
envelope has one written form. Anything else with the same meaning (other spacing, another key
order, a second signature) is refused, so that no byte of a stored record can change unnoticed.
"""

import base64
import binascii
from contextlib import suppress
from dataclasses import dataclass

from registry.errors import FormatError, IntegrityError

PAYLOAD_TYPE = "application/vnd.lethe.record.v1+json"
MAX_PAYLOAD_BYTES = 1024 * 1024
# Base64 takes 4 bytes for 3; the rest of the envelope is below 300.
MAX_ENVELOPE_BYTES = MAX_PAYLOAD_BYTES * 4 // 3 + 1024

# The written form, around the payload, a key id of 16 hex digits and a signature of 64 bytes.
_HEAD = b'{"payload":"'
_BEFORE_KEY_ID = b'","payloadType":"%s","signatures":[{"keyid":"' % PAYLOAD_TYPE.encode()
_BEFORE_SIGNATURE = b'","sig":"'
_END = b'"}]}'
_KEY_ID = slice(len(_BEFORE_KEY_ID), len(_BEFORE_KEY_ID) + 16)
_SIGNATURE = slice(
    _KEY_ID.stop + len(_BEFORE_SIGNATURE), _KEY_ID.stop + len(_BEFORE_SIGNATURE) + 88
)
_TAIL_BYTES = _SIGNATURE.stop + len(_END)


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature (64 bytes, RFC 8032) and the id of the key that made it."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one log object holds."""

    payload: bytes
    signature: Signature


def signed_bytes(payload: bytes, *, kind: str = PAYLOAD_TYPE) -> bytes:
    """DSSE's pre-authentication encoding (PAE): what is really signed and verified.

    The payload type `kind` keeps a signature for one purpose from passing for another.
    """
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def encode_envelope(envelope: Envelope) -> bytes:
    """The stored form.

    Raises: FormatError when the payload is over `MAX_PAYLOAD_BYTES`.
    """
    if len(envelope.payload) > MAX_PAYLOAD_BYTES:
        raise FormatError(
            f"a record may have {MAX_PAYLOAD_BYTES} bytes, this one has {len(envelope.payload)}; "
            "shorten its texts, or compact the adapter stack if it is long",
            check="size",
            where="new record",
        )
    return _encoded(envelope)


def decode_envelope(data: bytes, *, where: str) -> Envelope:
    """Read a stored envelope; nothing in it is trusted yet.

    Raises: IntegrityError (size), FormatError (not the written form).
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise IntegrityError(
            f"a record has at most {MAX_ENVELOPE_BYTES} bytes, this object has more",
            check="size",
            where=where,
        )
    # The parts are taken by position, and the envelope is encoded again. The comparison checks
    # every byte, and is ten times faster than parsing the JSON.
    with suppress(binascii.Error, UnicodeDecodeError):
        envelope = Envelope(
            payload=base64.b64decode(data[len(_HEAD) : -_TAIL_BYTES]),
            signature=Signature(
                key_id=data[-_TAIL_BYTES:][_KEY_ID].decode(),
                signature=base64.b64decode(data[-_TAIL_BYTES:][_SIGNATURE]),
            ),
        )
        if _encoded(envelope) == data:
            return envelope
    raise FormatError(
        f"expected one DSSE envelope as this registry writes it, found {data[:40]!r}...",
        check="envelope",
        where=where,
    )


def _encoded(envelope: Envelope) -> bytes:
    return b"".join(
        (
            _HEAD,
            base64.b64encode(envelope.payload),
            _BEFORE_KEY_ID,
            envelope.signature.key_id.encode(),
            _BEFORE_SIGNATURE,
            base64.b64encode(envelope.signature.signature),
            _END,
        )
    )
