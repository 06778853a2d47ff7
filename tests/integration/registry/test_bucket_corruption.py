"""Verification finds any change that somebody with write access to a bucket can make.

`tests/unit/registry/upkeep/test_verification.py` damages every region of every file in a folder.
Here one object of each kind meets each kind of damage, through a real S3 API.
"""

from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.errors import IntegrityError, RegistryError
from registry.log.ledger import FORMAT_KEY, Ledger, blob_key, log_key
from registry.records.bodies import Note
from registry.records.record import seal_record
from registry.signing.keys import Role, Signer, Trust
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.verification import verify
from tests.integration.registry.bucket_server import BUCKET, BucketServer
from tests.unit.registry.registry_acts import Acts, record_after

obstore = pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")

from obstore.store import S3Store  # noqa: E402

from registry.store.bucket import ObjectStore  # noqa: E402

FOLDER = "matrix"


class Vandal:
    """Writes to the bucket directly, without the store and its rules."""

    def __init__(self, server: BucketServer) -> None:
        self._client = S3Store(
            BUCKET, prefix=FOLDER, config=server.config, client_options={"allow_http": True}
        )

    def read(self, key: str) -> bytes:
        return bytes(obstore.get(self._client, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._client, key, data, mode="overwrite")

    def remove(self, key: str) -> None:
        obstore.delete(self._client, key)


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    server = BucketServer()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def store(server: BucketServer, trust: Trust, signers: dict[Role, Signer]) -> ObjectStore:
    """A registry with every kind of object in a bucket: 9 records, 3 blobs, one subject."""
    store = ObjectStore(f"s3://{BUCKET}/{FOLDER}", config=server.config)
    acts = Acts(Ledger(store, trust), signers)
    acts.erase(1)
    acts.note("the end")
    SubjectMap(store).assign("alice")
    return store


@pytest.fixture
def vandal(server: BucketServer, store: ObjectStore) -> Vandal:
    return Vandal(server)


def problems(store: ObjectStore, trust: Trust) -> list[tuple[str, str]]:
    return [(problem.check, problem.where) for problem in verify(store, trust).problems]


def one_of_each_kind(store: ObjectStore) -> list[str]:
    log, blobs = store.list("log/"), store.list("blobs/")
    named = store.list("subjects/by-class/")
    (person,) = set(store.list("subjects/")) - set(named)
    return [FORMAT_KEY, log[0], log[len(log) // 2], log[-1], blobs[0], person]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\n",
    "foreign": lambda data: b'{"AWSTemplateFormatVersion":"2010-09-09"}',
}


def test_a_sound_bucket_has_no_problems(store: ObjectStore, trust: Trust) -> None:
    found = verify(store, trust)
    assert found.problems == found.orphans == found.strays == ()
    assert (found.seq, found.blobs) == (9, 3)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_object_of_a_bucket_is_found_and_named(
    store: ObjectStore, trust: Trust, vandal: Vandal, damage: str
) -> None:
    for key in one_of_each_kind(store):
        good = vandal.read(key)
        vandal.put(key, DAMAGE[damage](good))
        try:
            assert key in [where for _, where in problems(store, trust)], f"{damage}: {key}"
        finally:
            vandal.put(key, good)


def test_a_missing_object_of_a_bucket_is_found_and_named(
    store: ObjectStore, trust: Trust, vandal: Vandal
) -> None:
    # Without the last record it is an older copy; without a subject it is a deletion: see below.
    for key in (FORMAT_KEY, log_key(1), log_key(5), store.list("blobs/")[0]):
        good = vandal.read(key)
        vandal.remove(key)
        try:
            assert key in [where for _, where in problems(store, trust)]
        finally:
            vandal.put(key, good)


def test_swapped_objects_of_a_bucket_are_found_and_named(
    store: ObjectStore, trust: Trust, vandal: Vandal
) -> None:
    for prefix in ("log/", "blobs/"):
        first, second = store.list(prefix)[:2]
        one, two = vandal.read(first), vandal.read(second)
        vandal.put(first, two)
        vandal.put(second, one)
        try:
            assert first in [where for _, where in problems(store, trust)]
        finally:
            vandal.put(first, one)
            vandal.put(second, two)


def test_a_record_that_is_replayed_or_forged_in_a_bucket_is_found(
    store: ObjectStore, trust: Trust, vandal: Vandal, signers: dict[Role, Signer]
) -> None:
    state = Ledger(store, trust).refresh()
    key = log_key(state.seq + 1)
    forged = record_after(state, Note("forged"))
    stranger = Signer(Ed25519PrivateKey.generate())
    for data, check in (
        (vandal.read(log_key(3)), "prev"),
        (seal_record(forged, stranger), "key"),
        (seal_record(forged, signers["publisher"]), "role"),
    ):
        vandal.put(key, data)
        try:
            assert problems(store, trust) == [(check, key)]
        finally:
            vandal.remove(key)


def test_an_older_copy_in_a_bucket_is_found_by_who_has_seen_more(
    store: ObjectStore, trust: Trust, vandal: Vandal
) -> None:
    reader = Ledger(store, trust)
    seq = reader.refresh().seq
    last = vandal.read(log_key(seq))
    vandal.remove(log_key(seq))
    try:
        assert problems(store, trust) == []
        (problem,) = verify(store, trust, at_least=seq).problems
        assert (problem.check, problem.where) == ("replay", log_key(seq))
        with pytest.raises(IntegrityError, match="an older copy") as caught:
            reader.refresh()
        assert caught.value.check == "replay"
        assert reader.state.seq == seq
    finally:
        vandal.put(log_key(seq), last)


def test_nothing_damaged_is_handed_out(store: ObjectStore, trust: Trust, vandal: Vandal) -> None:
    """Reads a blob and a record as a replica does, without `verify`."""
    ledger = Ledger(store, trust)
    ledger.refresh()
    (adapter,) = ledger.state.adapters.values()
    file = adapter.files["adapter.bin"]
    for key, act in (
        (blob_key(file.digest), lambda: ledger.get_blob(file.digest)),
        (log_key(4), lambda: Ledger(store, trust).refresh()),
    ):
        good = vandal.read(key)
        vandal.put(key, DAMAGE["a flipped bit"](good))
        try:
            with pytest.raises(RegistryError, match=key):
                act()
        finally:
            vandal.put(key, good)
