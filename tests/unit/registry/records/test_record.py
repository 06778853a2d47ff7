"""Records: the strict form of each type, who may sign it, and the order of the checks."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import pytest

from registry.errors import CheckError, FormatError, TrustError
from registry.records.bodies import (
    BODIES,
    SIGNED_BY,
    Body,
    Compacted,
    Note,
    Refused,
    Requested,
    Trained,
)
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.files import FileRef, adapter_id
from registry.records.record import GENESIS, Entry, Record, encode_record, open_record, seal_record
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack
from registry.signing.envelope import MAX_ENVELOPE_BYTES, Envelope, encode_envelope
from registry.signing.keys import ROLES, Role, Signer, Trust
from tests.unit.registry.registry_acts import NOON

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
S, T = "5" * 32, "7" * 32
FILES = {"adapter.bin": FileRef(A, 10), "forget.json": FileRef(B, 2)}
EXAMPLES: dict[str, Body] = {
    "requested": Requested(job="job-1", subjects=(T, S), backbone=A),
    "trained": Trained(
        job="job-1",
        adapter=adapter_id(FILES),
        files=FILES,
        subjects=(S, T),
        stack=(B, A),
        report=C,
    ),
    "compacted": Compacted(
        adapter=adapter_id(FILES), files=FILES, folds=(B, A), subjects=(S, T), report=C
    ),
    "refused": Refused(job="job-1", stage="gates", detail="Acc_r fell", report=C),
    "published": Published(
        release=3, kind="guard", backbone=A, adapters=(B,), guard=(S, T), parent=2, job="job-1"
    ),
    "rolled_back": RolledBack(release=4, to=0, backbone=A, adapters=(B,), guard=(S, T), parent=3),
    "activated": Activated(release=3),
    "confirmed": Confirmed(
        release=3, members={"r-1": "confirmed", "r-2": "lease_expired"}, ms=12.5
    ),
    "canary": Canary(release=3, percent=10, detail=""),
    "retried": Retried(job="job-1"),
    "restored": Restored(subjects=(T, S)),
    "tombstone": Tombstone(subjects=(S,), objects=("images", "subject_map")),
    "legal_hold": LegalHold(subjects=(S, T), act="placed"),
    "suspended": Suspended(state="resumed"),
    "sealed": Sealed(release=3, backbone=B),
    "note": Note(text="key rotated"),
}


def record(body: Body, *, seq: int = 1, prev: str = GENESIS) -> Record:
    return Record(
        seq=seq, prev=prev, at=NOON, actor="ops", reason="why", request_id="r-1", body=body
    )


def signed(value: Any, signer: Signer) -> bytes:
    """Any JSON value as a stored record with a valid signature."""
    payload = json.dumps(value).encode()
    return encode_envelope(Envelope(payload, signer.sign(payload)))


def opened(data: bytes, trust: Trust, *, seq: int = 1, prev: str = GENESIS) -> Entry:
    return open_record(data, trust=trust, seq=seq, prev=prev, where="log/1")


def test_every_type_has_an_example_and_a_role() -> None:
    assert set(EXAMPLES) == set(BODIES) == set(SIGNED_BY)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_reads_back_as_written(
    name: str, signers: dict[Role, Signer], trust: Trust
) -> None:
    written = record(EXAMPLES[name])
    signer = signers[SIGNED_BY[name]]
    entry = opened(seal_record(written, signer), trust)
    assert entry.record == written
    assert entry.record.type == name
    assert entry.key_id == signer.key_id


def test_a_refusal_may_have_no_report(signers: dict[Role, Signer], trust: Trust) -> None:
    written = record(Refused(job="job-1", stage="training", detail="", report=None))
    assert opened(seal_record(written, signers["publisher"]), trust).record == written


def test_a_compaction_is_published_without_a_job(signers: dict[Role, Signer], trust: Trust) -> None:
    written = record(
        Published(
            release=3,
            kind="compaction",
            backbone=A,
            adapters=(B,),
            guard=(S,),
            parent=2,
            job=None,
        )
    )
    assert opened(seal_record(written, signers["publisher"]), trust).record == written


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("role", ROLES)
def test_a_type_is_accepted_from_its_own_role_alone(
    name: str, role: Role, signers: dict[Role, Signer], trust: Trust
) -> None:
    data = seal_record(record(EXAMPLES[name]), signers[role])
    if role == SIGNED_BY[name]:
        opened(data, trust)
    else:
        with pytest.raises(TrustError, match=f"role {SIGNED_BY[name]} must sign") as caught:
            opened(data, trust)
        assert caught.value.check == "role"


ADDED: dict[tuple[str, str], Any] = {
    ("requested", "canary"): 10,
    ("requested", "batch"): True,
    ("trained", "provisional"): True,
    ("trained", "others"): ("job-2", "job-4"),
    ("refused", "others"): ("job-2",),
}
"""Fields that later versions added; records of earlier ones don't have them."""
BODY_FIELDS = [
    (name, field.name)
    for name, body in EXAMPLES.items()
    for field in dataclass_fields(body)
    if (name, field.name) not in ADDED
]
HEADER_FIELDS = ["v", "seq", "prev", "at", "actor", "reason", "request_id", "type", "body"]


@pytest.mark.parametrize(("name", "field"), BODY_FIELDS)
@pytest.mark.parametrize("wrong", ["missing", True, -1, "no\nsuch", [None], {"": 0}])
def test_a_body_with_a_wrong_field_is_refused_by_name(
    name: str, field: str, wrong: Any, signers: dict[Role, Signer], trust: Trust
) -> None:
    value = json.loads(encode_record(record(EXAMPLES[name])))
    if wrong == "missing":
        del value["body"][field]
    else:
        value["body"][field] = wrong
    with pytest.raises(FormatError, match=rf"log/1: field body\.{field}") as caught:
        opened(signed(value, signers[SIGNED_BY[name]]), trust)
    assert caught.value.check == "schema"


@pytest.mark.parametrize(("name", "field"), ADDED)
def test_an_added_field_may_be_left_out_and_is_read_strictly_where_it_is_not(
    name: str, field: str, signers: dict[Role, Signer], trust: Trust
) -> None:
    signer = signers[SIGNED_BY[name]]
    with_it = replace(EXAMPLES[name], **{field: ADDED[name, field]})  # type: ignore[type-var]
    assert opened(seal_record(record(with_it), signer), trust).record.body == with_it
    assert field not in json.loads(encode_record(record(EXAMPLES[name])))["body"]
    value = json.loads(encode_record(record(with_it)))
    for wrong in (False, None, 0, 100, "10", [10]):
        value["body"][field] = wrong
        with pytest.raises(FormatError, match=rf"log/1: field body\.{field}"):
            opened(signed(value, signer), trust)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_body_with_an_unknown_field_is_refused_by_name(
    name: str, signers: dict[Role, Signer], trust: Trust
) -> None:
    value = json.loads(encode_record(record(EXAMPLES[name])))
    value["body"]["class_name"] = "alice"
    with pytest.raises(FormatError, match=r"field body\.class_name: this version doesn't know"):
        opened(signed(value, signers[SIGNED_BY[name]]), trust)


@pytest.mark.parametrize("field", HEADER_FIELDS)
@pytest.mark.parametrize("wrong", ["missing", True, 0, "\n", [], None])
def test_a_header_with_a_wrong_field_is_refused(
    field: str, wrong: Any, signers: dict[Role, Signer], trust: Trust
) -> None:
    value = json.loads(encode_record(record(EXAMPLES["note"])))
    if wrong == "missing":
        del value[field]
    else:
        value[field] = wrong
    with pytest.raises(CheckError, match=field):
        opened(signed(value, signers["operator"]), trust)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda value: value.update(extra=1), "extra"),
        (lambda value: value.update(v=2), "v: this version reads 1, found 2"),
        (lambda value: value.update(type="melted"), "type: expected one of"),
        (lambda value: value.update(actor=""), "actor"),
        (lambda value: value.update(actor="x" * 129), "actor"),
        (lambda value: value.update(reason="x" * 501), "reason"),
        (lambda value: value.update(request_id=""), "request_id"),
        (lambda value: value.update(at="2026-11-20"), "at"),
        (lambda value: value["body"].update(text=""), "body.text"),
        (lambda value: value["body"].update(text="x" * 2001), "body.text"),
    ],
)
def test_a_record_that_this_version_does_not_know_is_refused_by_field(
    change: Callable[[Any], None], field: str, signers: dict[Role, Signer], trust: Trust
) -> None:
    value = json.loads(encode_record(record(EXAMPLES["note"])))
    change(value)
    with pytest.raises(FormatError, match=f"field {field}"):
        opened(signed(value, signers["operator"]), trust)


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("requested", {"subjects": []}, "subjects"),
        ("requested", {"subjects": [S, S]}, "subjects"),
        ("requested", {"subjects": ["alice"]}, "subjects"),
        ("requested", {"backbone": "vit_tiny"}, "backbone"),
        ("trained", {"adapter": A}, "adapter: its files make it"),
        ("trained", {"files": {}}, "files"),
        ("trained", {"files": {"../x": [A, 1]}}, "files"),
        ("trained", {"files": {"x": [A]}}, r"files\.x"),
        ("trained", {"files": {"x": [A, -1]}}, r"files\.x"),
        ("trained", {"files": {"x": [A, True]}}, r"files\.x"),
        ("trained", {"files": {"x": ["a", 1]}}, r"files\.x"),
        ("trained", {"stack": [A, A]}, "stack"),
        ("published", {"kind": "rollback"}, "kind"),
        ("published", {"guard": [T, S]}, "guard: expected sorted"),
        ("published", {"release": 0}, "release"),
        ("published", {"job": None}, "job: expected the id of a job"),
        ("published", {"kind": "compaction"}, "job: expected null for a release of kind comp"),
        ("compacted", {"adapter": A}, "adapter: its files make it"),
        ("compacted", {"files": {}}, "files"),
        ("compacted", {"folds": [A]}, "folds"),
        ("compacted", {"folds": [A, A]}, "folds"),
        ("compacted", {"subjects": []}, "subjects"),
        ("compacted", {"report": None}, "report"),
        ("rolled_back", {"guard": [T, S]}, "guard: expected sorted"),
        ("confirmed", {"members": {"r-1": "dead"}}, r"members\.r-1"),
        ("confirmed", {"members": {"r 1": "confirmed"}}, "members"),
        ("confirmed", {"members": {"r-1": ["confirmed"]}}, r"members\.r-1"),
        ("confirmed", {"ms": -1.0}, "ms"),
        ("restored", {"subjects": []}, "subjects"),
        ("tombstone", {"objects": []}, "objects"),
        ("tombstone", {"objects": ["log"]}, "objects"),
        ("tombstone", {"objects": ["images", "images"]}, "objects"),
        ("legal_hold", {"act": "held"}, "act"),
        ("suspended", {"state": "off"}, "state"),
        ("sealed", {"release": 0}, "release"),
    ],
)
def test_a_body_with_an_impossible_value_is_refused_by_field(
    name: str, changes: dict[str, Any], field: str, signers: dict[Role, Signer], trust: Trust
) -> None:
    value = json.loads(encode_record(record(EXAMPLES[name])))
    value["body"].update(changes)
    with pytest.raises(FormatError, match=rf"field body\.{field}"):
        opened(signed(value, signers[SIGNED_BY[name]]), trust)


@pytest.mark.parametrize("payload", [b"[]", b"null", b"{", b"\xff", b'{"v":1,"v":1}'])
def test_a_signed_payload_that_is_no_json_object_is_refused(
    payload: bytes, signers: dict[Role, Signer], trust: Trust
) -> None:
    data = encode_envelope(Envelope(payload, signers["operator"].sign(payload)))
    with pytest.raises(FormatError, match="log/1: "):
        opened(data, trust)


def test_the_checks_come_in_their_order(signers: dict[Role, Signer], trust: Trust) -> None:
    """An object has every fault. When one is corrected, the next check is the one that fails."""
    wrong: dict[str, Any] = {
        "v": 1,
        "seq": 9,
        "prev": A,
        "at": "2026-11-20T12:00:00.000Z",
        "actor": "ops",
        "reason": "why",
        "request_id": "r-1",
        "type": "note",
        "body": {"text": ""},
    }
    found = []

    def failing(data: bytes) -> None:
        with pytest.raises(CheckError) as caught:
            opened(data, trust)
        found.append(caught.value.check)

    unsigned = Envelope(json.dumps(wrong).encode(), signers["operator"].sign(b"another"))
    failing(encode_envelope(unsigned) + b" " * MAX_ENVELOPE_BYTES)
    failing(encode_envelope(unsigned) + b" ")
    failing(encode_envelope(unsigned))
    failing(signed(wrong, signers["eraser"]))
    failing(signed(wrong, signers["operator"]))
    wrong["prev"] = GENESIS
    failing(signed(wrong, signers["operator"]))
    wrong["seq"] = 1
    failing(signed(wrong, signers["operator"]))
    assert found == ["size", "envelope", "signature", "role", "prev", "seq", "schema"]

    wrong["body"]["text"] = "mended"
    assert opened(signed(wrong, signers["operator"]), trust).record.body == Note("mended")


def test_the_same_files_make_the_same_adapter_id() -> None:
    again = {"forget.json": FileRef(B, 2), "adapter.bin": FileRef(A, 10)}
    assert adapter_id(again) == adapter_id(FILES)
    assert adapter_id({**FILES, "forget.json": FileRef(B, 3)}) != adapter_id(FILES)
    canonical = b'{"x":["sha256:' + b"a" * 64 + b'",1]}'
    expected = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    assert adapter_id({"x": FileRef(A, 1)}) == expected
