"""DSSE envelopes have one written form, and a change of any byte is noticed."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import FormatError, IntegrityError
from registry.signing.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_PAYLOAD_BYTES,
    Envelope,
    Signature,
    decode_envelope,
    encode_envelope,
    signed_bytes,
)

ENVELOPE = Envelope(b'{"seq":1}', Signature("0123456789abcdef", bytes(range(64))))


def test_signed_bytes_are_the_pre_authentication_encoding_of_dsse() -> None:
    expected = b"DSSEv1 36 application/vnd.lethe.record.v1+json 11 hello world"
    assert signed_bytes(b"hello world") == expected


def test_an_envelope_is_written_as_other_dsse_tools_read_it() -> None:
    assert encode_envelope(ENVELOPE).startswith(
        b'{"payload":"eyJzZXEiOjF9","payloadType":"application/vnd.lethe.record.v1+json",'
        b'"signatures":[{"keyid":"0123456789abcdef","sig":"AAEC'
    )


@given(payload=st.binary(max_size=200), signature=st.binary(min_size=64, max_size=64))
def test_an_envelope_reads_back_as_written(payload: bytes, signature: bytes) -> None:
    envelope = Envelope(payload, Signature("0123456789abcdef", signature))
    assert decode_envelope(encode_envelope(envelope), where="log/1") == envelope


def test_no_changed_byte_reads_as_the_same_envelope() -> None:
    data = encode_envelope(ENVELOPE)
    for position in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[position] ^= mask
            try:
                read = decode_envelope(bytes(changed), where="log/1")
            except FormatError:
                continue
            assert read != ENVELOPE, f"byte {position} changed unnoticed"


@pytest.mark.parametrize("end", [0, 1, 20, 100, -1])
def test_a_truncated_envelope_is_refused(end: int) -> None:
    with pytest.raises(FormatError, match="log/1: expected one DSSE envelope"):
        decode_envelope(encode_envelope(ENVELOPE)[:end], where="log/1")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b":", b": ", 1),
        lambda data: data.replace(b"eyJzZXEiOjF9", b"eyJz ZXEiOjF9"),
        lambda data: data.replace(b"Pw==", b"Px=="),
        lambda data: data[:-2] + b',{"keyid":"","sig":""}]}',
        lambda data: b"[" * 50_000,
        lambda data: b"\xff" * 300,
    ],
)
def test_another_form_of_the_same_envelope_is_refused(change: Callable[[bytes], bytes]) -> None:
    changed = change(encode_envelope(ENVELOPE))
    assert changed != encode_envelope(ENVELOPE)
    with pytest.raises(FormatError, match="check: envelope"):
        decode_envelope(changed, where="log/1")


def test_an_oversized_object_is_refused_before_it_is_read() -> None:
    with pytest.raises(IntegrityError, match="check: size") as caught:
        decode_envelope(b"x" * (MAX_ENVELOPE_BYTES + 1), where="log/1")
    assert (caught.value.check, caught.value.where) == ("size", "log/1")


def test_the_largest_payload_fits_and_the_next_does_not() -> None:
    signature = ENVELOPE.signature
    largest = encode_envelope(Envelope(b"x" * MAX_PAYLOAD_BYTES, signature))
    assert len(decode_envelope(largest, where="log/1").payload) == MAX_PAYLOAD_BYTES
    with pytest.raises(FormatError, match=f"may have {MAX_PAYLOAD_BYTES} bytes"):
        encode_envelope(Envelope(b"x" * (MAX_PAYLOAD_BYTES + 1), signature))
