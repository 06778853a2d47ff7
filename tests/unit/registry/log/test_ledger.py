"""The ledger: only verified records count, it only grows, and no writer overwrites a record."""

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from registry.errors import (
    CheckError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    TrustError,
)
from registry.fold.state import State
from registry.log.ledger import FORMAT_KEY, Ledger, blob_key, log_key
from registry.publish.declarations import write_note
from registry.records.bodies import Note
from registry.records.record import Draft, digest_of, seal_record
from registry.records.releases import Activated, Published, RolledBack
from registry.signing.envelope import MAX_ENVELOPE_BYTES
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import DirectoryStore
from tests.unit.registry.registry_acts import BACKBONE, NOON, Acts, record_after, subject


def draft(text: str = "hello") -> Draft:
    return Draft(Note(text), "ops", "a test", "request-1")


def overwrite(store: DirectoryStore, key: str, data: bytes) -> None:
    (store.root / key).write_bytes(data)


def check_of(act: Callable[[], Any]) -> tuple[str, str]:
    """The check that `act` fails, and on which object."""
    with pytest.raises(CheckError) as caught:
        act()
    return caught.value.check, caught.value.where


def test_an_empty_registry_has_the_empty_state_and_stays_empty_when_read(
    ledger: Ledger, store: DirectoryStore
) -> None:
    assert ledger.refresh() == State()
    assert list(ledger.records()) == []
    assert not store.root.exists()


def test_a_reader_sees_what_another_ledger_appended(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    reader = Ledger(store, trust)
    reader.refresh()
    acts.erase(1)
    assert reader.state == State()
    assert reader.refresh() == acts.state
    assert reader.state.jobs["job-1"].state == "done"
    acts.note("one more")
    assert reader.refresh() == acts.state == Ledger(store, trust).refresh()


def test_append_returns_the_state_that_a_reader_gets(
    ledger: Ledger, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    state = ledger.append(lambda _: draft(), signers["operator"])
    assert state == ledger.state == Ledger(store, trust).refresh()
    assert store.list("") == ["format.json", "log/00000000000000000001.json"]


def test_append_adds_nothing_when_there_is_nothing_to_add(
    ledger: Ledger, store: DirectoryStore, signers: dict[Role, Signer]
) -> None:
    assert ledger.append(lambda _: None, signers["operator"]) == State()
    assert store.list("") == []


def test_the_time_is_the_clocks_in_utc(
    store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    time = datetime(2026, 11, 20, 15, 0, 0, 123999, tzinfo=timezone(timedelta(hours=1)))
    ledger = Ledger(store, trust, clock=lambda: time)
    ledger.append(lambda _: draft(), signers["operator"])
    (entry,) = ledger.records()
    assert entry.record.at == datetime(2026, 11, 20, 14, 0, 0, 123000, tzinfo=UTC)


def test_the_loser_of_a_race_makes_its_record_anew_from_the_newer_state(
    acts: Acts, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    slow = Ledger(store, trust, rng=random.Random(0))
    seen = []

    def make(state: State) -> Draft:
        seen.append(state.seq)
        if len(seen) <= 3:
            acts.note(f"faster by a moment, {len(seen)}")
        return draft(f"after {state.seq}")

    state = slow.append(make, signers["operator"])
    assert seen == [0, 1, 2, 3]
    assert state.seq == 4
    assert [entry.record.body for entry in slow.records(4)] == [Note("after 3")]


def test_a_writer_that_never_wins_gives_up_with_a_conflict(
    acts: Acts, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    def make(state: State) -> Draft:
        acts.note("always first")
        return draft()

    with pytest.raises(ConflictError, match="other writers were faster"):
        Ledger(store, trust, patience_s=0.05).append(make, signers["operator"])


def test_an_error_in_make_leaves_the_log_alone(
    ledger: Ledger, store: DirectoryStore, signers: dict[Role, Signer]
) -> None:
    def make(state: State) -> Draft:
        raise NotFoundError("no such release")

    with pytest.raises(NotFoundError, match="no such release"):
        ledger.append(make, signers["operator"])
    assert store.list("") == []


def test_append_writes_nothing_that_a_reader_would_refuse(
    ledger: Ledger, store: DirectoryStore, signers: dict[Role, Signer]
) -> None:
    stranger = Signer(Ed25519PrivateKey.generate())
    for make, signer, error in (
        (lambda _: draft(), signers["publisher"], TrustError),
        (lambda _: draft(), stranger, TrustError),
        (lambda _: draft("x" * 3000), signers["operator"], FormatError),
        (lambda _: draft("two\nlines"), signers["operator"], FormatError),
        (lambda _: replace(draft(), actor=""), signers["operator"], FormatError),
        (lambda _: Draft(Activated(1), "ops", "", "r"), signers["operator"], ConflictError),
    ):
        with pytest.raises(error):
            ledger.append(make, signer)
    assert store.list("log/") == []


def test_threads_that_append_at_once_each_get_a_number(
    ledger: Ledger, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    def work(name: str) -> None:
        for _ in range(15):
            ledger.append(lambda _: draft(name), signers["operator"])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = Ledger(store, trust)
    assert reader.refresh().seq == 60
    bodies = [entry.record.body for entry in reader.records()]
    assert Counter(bodies) == {Note(name): 15 for name in "abcd"}


def test_records_gives_any_tail_with_its_chain_and_signers(
    acts: Acts, signers: dict[Role, Signer]
) -> None:
    acts.erase(1)
    entries = list(acts.ledger.records())
    assert [entry.record.seq for entry in entries] == list(range(1, 9))
    assert [entry.record.type for entry in entries] == (
        ["requested", "published", "activated", "confirmed"]
        + ["trained", "published", "activated", "confirmed"]
    )
    for before, entry in zip(entries, entries[1:], strict=False):
        assert entry.record.prev == before.digest
    assert entries[-1].digest == acts.state.head
    assert {entry.key_id for entry in entries if entry.record.type == "published"} == {
        signers["publisher"].key_id
    }
    assert list(acts.ledger.records(6)) == entries[5:]
    assert list(acts.ledger.records(9)) == []


# What a reader must refuse


def test_a_changed_byte_anywhere_in_a_record_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    for text in ("one", "two", "three"):
        acts.note(text)
    key = log_key(2)
    good = store.read(key)
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 0x04
        overwrite(store, key, bytes(changed))
        reader = Ledger(store, trust)
        _, where = check_of(reader.refresh)
        assert where == key
        assert reader.state.seq == 1
    overwrite(store, key, good)
    assert Ledger(store, trust).refresh() == acts.state


def test_a_truncated_record_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    acts.note("one")
    good = store.read(log_key(1))
    for size in (0, 1, len(good) // 2, len(good) - 1):
        overwrite(store, log_key(1), good[:size])
        assert check_of(Ledger(store, trust).refresh) == ("envelope", log_key(1))


def test_an_oversized_record_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    store.create(log_key(1), b"x" * (MAX_ENVELOPE_BYTES + 1))
    store.create(FORMAT_KEY, b'{"format":"lethe-registry","version":1}')
    assert check_of(Ledger(store, trust).refresh) == ("size", log_key(1))


def test_swapped_records_stop_the_reader(acts: Acts, store: DirectoryStore, trust: Trust) -> None:
    for text in ("one", "two", "three"):
        acts.note(text)
    second, third = store.read(log_key(2)), store.read(log_key(3))
    overwrite(store, log_key(2), third)
    overwrite(store, log_key(3), second)
    assert check_of(Ledger(store, trust).refresh) == ("prev", log_key(2))


def test_a_record_replayed_at_the_end_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    acts.note("one")
    acts.note("two")
    store.create(log_key(3), store.read(log_key(2)))
    assert check_of(Ledger(store, trust).refresh) == ("prev", log_key(3))
    assert check_of(acts.ledger.refresh) == ("prev", log_key(3))


def test_a_missing_record_stops_the_reader(acts: Acts, store: DirectoryStore, trust: Trust) -> None:
    for text in ("one", "two", "three"):
        acts.note(text)
    store.delete(log_key(2))
    assert check_of(Ledger(store, trust).refresh) == ("gap", log_key(2))


def test_a_record_by_a_stranger_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    acts.note("one")
    stranger = Signer(Ed25519PrivateKey.generate())
    store.create(log_key(2), seal_record(record_after(acts.state, Note("two")), stranger))
    assert check_of(Ledger(store, trust).refresh) == ("key", log_key(2))


def test_a_record_in_the_wrong_role_stops_the_reader(
    acts: Acts, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    data = seal_record(record_after(acts.state, Note("one")), signers["publisher"])
    store.create(log_key(1), data)
    store.create(FORMAT_KEY, b'{"format":"lethe-registry","version":1}')
    assert check_of(Ledger(store, trust).refresh) == ("role", log_key(1))


def test_a_record_by_a_retired_key_stops_the_reader_and_the_writer(
    store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    operator = signers["operator"]
    times = [NOON, NOON + timedelta(seconds=1), NOON + timedelta(seconds=2)]
    ledger = Ledger(store, trust, clock=lambda: times[ledger.state.seq])
    ledger.append(lambda _: draft(), operator)
    ledger.append(lambda _: draft(), operator)
    retired = replace(trust.keys[operator.key_id], not_after=NOON)

    reader = Ledger(store, Trust({**trust.keys, operator.key_id: retired}))
    assert check_of(reader.refresh) == ("retired", log_key(2))
    retired = replace(retired, not_after=times[1])
    writer = Ledger(store, Trust({**trust.keys, operator.key_id: retired}), clock=lambda: times[2])
    assert writer.refresh().seq == 2
    with pytest.raises(TrustError, match="retired before"):
        writer.append(lambda _: draft(), operator)


def test_an_older_copy_put_back_is_refused_by_whoever_has_seen_more(
    acts: Acts, store: DirectoryStore, trust: Trust, tmp_path: Path
) -> None:
    acts.note("one")
    shutil.copytree(store.root, tmp_path / "older")
    acts.erase(1)
    reader = Ledger(store, trust)
    seen = reader.refresh()
    shutil.rmtree(store.root)
    shutil.copytree(tmp_path / "older", store.root)

    assert check_of(reader.refresh) == ("replay", log_key(9))
    assert reader.state == seen
    assert Ledger(store, trust).refresh().seq == 1  # valid in itself: a new reader can't notice


def test_an_older_copy_that_went_on_differently_is_refused_too(
    acts: Acts, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    acts.note("one")
    reader = Ledger(store, trust)
    acts.note("two")
    reader.refresh()
    store.delete(log_key(2))
    other = Ledger(store, trust)
    for text in ("another two", "another three"):
        other.append(lambda _, text=text: draft(text), signers["operator"])  # type: ignore[misc]

    assert check_of(reader.refresh) == ("replay", log_key(2))
    with pytest.raises(IntegrityError, match="older copy or another log"):
        reader.append(lambda _: draft(), signers["operator"])
    assert store.list("log/")[-1] == log_key(3)


def test_records_notices_a_log_that_was_replaced_since(acts: Acts, store: DirectoryStore) -> None:
    acts.note("one")
    acts.note("two")
    store.delete(log_key(2))
    assert check_of(lambda: list(acts.ledger.records())) == ("gap", log_key(2))
    acts.force(store, Note("unseen"))
    assert check_of(lambda: list(acts.ledger.records(2))) == ("gap", log_key(2))


def test_a_record_that_breaks_a_rule_stops_the_reader_whoever_signed_it(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    acts.erase(1)
    acts.forget(2)
    adapters = acts.state.active_release.adapters
    guard = (subject(1),)
    for body, message in (
        (Activated(1), "numbers only grow"),
        (Published(3, "guard", BACKBONE, adapters, guard, 2, "job-2"), "would unmask 1 subjects"),
        (Published(4, "guard", BACKBONE, adapters, guard, 2, "job-2"), "next release is 3"),
        (RolledBack(3, 1, BACKBONE, (), guard, 2), "every subject under erasure"),
    ):
        key = acts.force(store, body)
        reader = Ledger(store, trust)
        with pytest.raises(IntegrityError, match=message) as caught:
            reader.refresh()
        assert (caught.value.check, caught.value.where) == ("fold", key)
        assert reader.state == acts.state
        store.delete(key)


# format.json


@pytest.mark.parametrize(
    "data",
    [b"", b'{"format":"lethe-registry","version":2}', b'{"format":"other","version":1}']
    + [b'{"format":"lethe-registry","version":1,"more":1}', b"{}"],
)
def test_an_unknown_format_is_refused(
    acts: Acts, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer], data: bytes
) -> None:
    acts.note("one")
    overwrite(store, FORMAT_KEY, data)
    reader = Ledger(store, trust)
    assert check_of(reader.refresh) == ("schema", FORMAT_KEY)
    with pytest.raises(FormatError, match=r"format\.json"):
        reader.append(lambda _: draft(), signers["operator"])


def test_a_log_without_its_format_is_refused(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    acts.note("one")
    store.delete(FORMAT_KEY)
    assert check_of(Ledger(store, trust).refresh) == ("format", FORMAT_KEY)


def test_a_registry_that_begins_while_it_is_first_read_lacks_no_format(
    acts: Acts, store: DirectoryStore, trust: Trust
) -> None:
    class BeginsNow(DirectoryStore):
        """Another process writes its first record right after the first look for the format."""

        def read(self, key: str, *, at_most: int | None = None) -> bytes:
            try:
                return super().read(key, at_most=at_most)
            except NotFoundError:
                if key == FORMAT_KEY:
                    acts.note("the first")
                raise

    assert Ledger(BeginsNow(store.root), trust).refresh() == acts.state


# blobs


def test_a_blob_is_named_by_its_digest_and_stored_once(
    ledger: Ledger, store: DirectoryStore
) -> None:
    digest = ledger.put_blob(b"weights")
    assert digest == digest_of(b"weights") == ledger.put_blob(b"weights")
    hexadecimal = digest.removeprefix("sha256:")
    assert store.list("") == [f"blobs/sha256/{hexadecimal[:2]}/{hexadecimal}"]
    assert ledger.get_blob(digest) == ledger.get_blob(digest, size=7) == b"weights"


@pytest.mark.parametrize(
    ("found", "size", "check"),
    [
        (b"weighty", 7, "sha256"),
        (b"weighty", None, "sha256"),
        (b"weight", 7, "size"),
        (b"weight", None, "sha256"),
        (b"weights and more", 7, "size"),
        (b"", 7, "size"),
    ],
)
def test_a_changed_blob_is_refused(
    ledger: Ledger, store: DirectoryStore, found: bytes, size: int | None, check: str
) -> None:
    digest = ledger.put_blob(b"weights")
    overwrite(store, blob_key(digest), found)
    assert check_of(lambda: ledger.get_blob(digest, size=size)) == (check, blob_key(digest))


def test_a_damaged_blob_is_not_taken_for_the_one_to_be_stored(
    ledger: Ledger, store: DirectoryStore
) -> None:
    digest = ledger.put_blob(b"weights")
    overwrite(store, blob_key(digest), b"weighty")
    assert check_of(lambda: ledger.put_blob(b"weights"))[0] == "sha256"


def test_a_missing_blob_and_a_false_digest_are_told_apart(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="blobs/sha256/aa"):
        ledger.get_blob(f"sha256:{'a' * 64}")
    for false in ("", "sha256:xyz", "../../etc/passwd", "a" * 64):
        with pytest.raises(ValueError, match="expected a digest"):
            ledger.get_blob(false)


def test_the_longest_allowed_texts_fit_into_a_record(
    ledger: Ledger, signers: dict[Role, Signer]
) -> None:
    write_note(
        ledger,
        signers["operator"],
        text="\u20ac" * 2000,
        actor="\u20ac" * 128,
        reason="\u20ac" * 500,
        request_id="r" * 128,
    )
    assert ledger.refresh().seq == 1


def test_a_guard_too_long_for_a_record_is_refused_with_a_sentence(acts: Acts) -> None:
    acts.forget(*range(16_000))
    acts.forget(*range(16_000, 31_000))
    with pytest.raises(FormatError, match="compact the adapter stack"):
        acts.publish("guard", "job-2")
    assert acts.ledger.refresh().seq == 2


def test_several_blobs_are_stored_at_once_in_their_order(
    ledger: Ledger, store: DirectoryStore
) -> None:
    contents = [b"one", b"two", b"one", b"", b"three" * 1000]
    digests = ledger.put_blobs(contents)
    assert digests == [digest_of(data) for data in contents]
    assert [ledger.get_blob(digest) for digest in digests] == contents
    assert len(store.list("blobs/")) == 4
    assert ledger.put_blobs([]) == []


def test_one_blob_that_can_not_be_stored_fails_them_all(
    ledger: Ledger, store: DirectoryStore
) -> None:
    overwritten = ledger.put_blob(b"one")
    overwrite(store, blob_key(overwritten), b"damaged")
    with pytest.raises(IntegrityError, match=blob_key(overwritten)):
        ledger.put_blobs([b"two", b"one"])
