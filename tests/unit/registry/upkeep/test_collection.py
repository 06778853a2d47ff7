"""Collection deletes what crashes left, but nothing that a record names or is about to name."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from registry.errors import CheckError
from registry.log.ledger import Ledger, blob_key, log_key, utc_now
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from registry.subjects.personal import keep_image
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.collection import GRACE, collect
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import Acts, subject

DAY = timedelta(days=1)


def age(path: Path, *, by: timedelta) -> None:
    time = (utc_now() - by).timestamp()
    os.utime(path, (time, time))


def age_all(store: DirectoryStore, *, by: timedelta = 3 * DAY) -> None:
    for path in store.root.rglob("*"):
        if path.is_file():
            age(path, by=by)


@pytest.fixture
def orphan(acts: Acts) -> str:
    """The key of a blob that no record names, in a registry with two adapters and a refusal."""
    acts.erase(1)
    acts.forget(2)
    acts.train("job-2")
    acts.refuse("job-2")
    acts.train("job-2")
    return blob_key(acts.ledger.put_blob(b"orphan"))


@pytest.fixture
def now() -> datetime:
    return utc_now()


def test_an_old_orphan_goes_and_every_named_blob_stays(
    acts: Acts, store: DirectoryStore, trust: Trust, orphan: str, now: datetime
) -> None:
    age_all(store)
    before = store.list("")
    found = collect(store, acts.ledger, now=now)
    assert found.blobs == (orphan,)
    assert store.list("") == [key for key in before if key != orphan]
    found_by_verify = verify(store, trust)
    assert found_by_verify.problems == found_by_verify.orphans == ()


def test_a_young_orphan_stays(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    age_all(store)
    age(store.root / orphan, by=GRACE - timedelta(minutes=1))
    assert collect(store, acts.ledger, now=now).blobs == ()
    assert orphan in store.list("")


def test_storing_an_old_orphan_again_makes_it_young(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    age_all(store)
    acts.ledger.put_blob(b"orphan")
    assert collect(store, acts.ledger, now=now).blobs == ()


def test_a_blob_touched_while_it_is_taken_is_put_back(store: DirectoryStore, now: datetime) -> None:
    store.create("blobs/a", b"data")
    age(store.root / "blobs" / "a", by=3 * DAY)
    assert store.older("blobs/", before=now - DAY) == ("blobs/a",)
    store.touch("blobs/a")
    assert not store.delete_older("blobs/a", before=now - DAY)
    assert store.read("blobs/a") == b"data"
    assert not store.delete_older("blobs/none", before=now - DAY)


def test_old_leftovers_go_and_young_ones_stay(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    old, young = store.root / "log" / ".tmp-1-a", store.root / "blobs" / ".tmp-2-b"
    for path in (old, young):
        path.write_bytes(b"half")
    age(old, by=2 * DAY)
    assert collect(store, acts.ledger, now=now).leftovers == ("log/.tmp-1-a",)
    assert young.exists()
    assert not old.exists()


def test_a_dry_run_tells_and_takes_nothing(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    (store.root / ".tmp-1-a").write_bytes(b"half")
    age_all(store)
    before = sorted(store.root.rglob("*"))
    found = collect(store, acts.ledger, now=now, dry_run=True)
    assert (found.blobs, found.leftovers) == ((orphan,), (".tmp-1-a",))
    assert sorted(store.root.rglob("*")) == before


def test_nothing_is_taken_from_a_registry_that_can_not_be_read_whole(
    acts: Acts, store: DirectoryStore, trust: Trust, orphan: str, now: datetime
) -> None:
    age_all(store)
    fresh = Ledger(store, trust)
    (store.root / log_key(5)).write_bytes(b"damaged")
    for ledger in (acts.ledger, fresh):
        with pytest.raises(CheckError, match=log_key(5)):
            collect(store, ledger, now=now)
    assert orphan in store.list("")


def test_images_whose_request_was_never_recorded_go_and_all_others_stay(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    subjects = SubjectMap(store)
    nobody = subjects.assign("seven")
    lost, again = (keep_image(store, nobody, data) for data in (b"one", b"two"))
    kept = keep_image(store, subject(1), b"one")
    age_all(store)
    assert keep_image(store, nobody, b"two") == again  # by a request that is in progress
    before = store.list("")
    assert collect(store, acts.ledger, now=now, dry_run=True).uploads == (lost,)
    assert store.list("") == before
    assert collect(store, acts.ledger, now=now).uploads == (lost,)
    assert {again, kept} < set(store.list("")) == set(before) - {lost, orphan}
    assert subjects.class_of(nobody) == "seven"


def test_files_of_others_are_left_alone(
    acts: Acts, store: DirectoryStore, orphan: str, now: datetime
) -> None:
    store.create("blobs/sha256/README", b"hello")
    age_all(store)
    assert collect(store, acts.ledger, now=now).blobs == (orphan,)
    assert store.read("blobs/sha256/README") == b"hello"
