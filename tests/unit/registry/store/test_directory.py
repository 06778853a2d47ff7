"""The directory store: objects appear whole, are never overwritten, and stay below its root."""

import multiprocessing
import os
import stat
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from registry.errors import AlreadyExistsError, NotFoundError, StoreError
from registry.log.ledger import utc_now
from registry.store.directory import DirectoryStore

KEYS = [f"log/{number:04d}" for number in range(60)]


def test_an_object_reads_back_as_it_was_created(store: DirectoryStore) -> None:
    store.create("blobs/sha256/ab/abc", b"\0data\n")
    assert store.read("blobs/sha256/ab/abc") == b"\0data\n"


def test_an_empty_object_reads_back_empty(store: DirectoryStore) -> None:
    store.create("empty", b"")
    assert store.read("empty") == b""


def test_create_refuses_a_taken_key_and_leaves_the_object(store: DirectoryStore) -> None:
    store.create("log/1", b"first")
    with pytest.raises(AlreadyExistsError, match="log/1"):
        store.create("log/1", b"second")
    assert store.read("log/1") == b"first"


def test_create_leaves_no_temporary_file(store: DirectoryStore) -> None:
    store.create("log/1", b"first")
    with pytest.raises(AlreadyExistsError):
        store.create("log/1", b"second")
    assert os.listdir(store.root / "log") == ["1"]


def test_several_objects_are_created_at_once_and_the_taken_keys_told(
    store: DirectoryStore,
) -> None:
    store.create("a/2", b"first")
    objects = {"a/1": b"one", "a/2": b"two", "b/c/3": b"", "top": bytes(3000)}
    assert store.create_all(objects) == ("a/2",)
    assert {key: store.read(key) for key in objects} == {**objects, "a/2": b"first"}
    assert store.create_all({}) == ()
    assert store.leftovers(before=utc_now() + timedelta(days=1), delete=False) == ()


def test_of_several_objects_one_that_can_not_be_stored_is_an_error_that_leaves_no_litter(
    store: DirectoryStore,
) -> None:
    store.create("a", b"a file where a folder is needed")
    with pytest.raises(StoreError, match="can't be stored"):
        store.create_all({"b": b"", "a/1": b""})
    assert store.leftovers(before=utc_now() + timedelta(days=1), delete=False) == ()


def test_read_returns_no_more_than_it_was_asked_for(store: DirectoryStore) -> None:
    store.create("big", bytes(range(256)) * 20_000)
    assert store.read("big", at_most=300) == bytes(range(256)) + bytes(range(44))
    assert len(store.read("big", at_most=10**9)) == 256 * 20_000
    assert store.read("big", at_most=0) == b""


@pytest.mark.parametrize("verb", ["read", "delete"])
def test_a_missing_object_is_named(store: DirectoryStore, verb: str) -> None:
    with pytest.raises(NotFoundError, match="log/7"):
        getattr(store, verb)("log/7")


def test_list_is_sorted_and_takes_any_prefix(store: DirectoryStore) -> None:
    for key in ("log/3", "log/10", "log/1", "logs", "blobs/a/b"):
        store.create(key, b"")
    assert store.list("log/") == ["log/1", "log/10", "log/3"]
    assert store.list("log/1") == ["log/1", "log/10"]
    assert store.list("log") == ["log/1", "log/10", "log/3", "logs"]
    assert store.list("") == ["blobs/a/b", "log/1", "log/10", "log/3", "logs"]
    assert store.list("nothing/") == []


def test_list_skips_what_a_crash_left_behind(store: DirectoryStore) -> None:
    store.create("log/1", b"")
    (store.root / "log" / ".tmp-123-abc").write_bytes(b"half")
    assert store.list("log/") == ["log/1"]


def test_listing_that_fails_is_not_taken_for_an_empty_directory(store: DirectoryStore) -> None:
    store.create("log", b"a file where a directory belongs")
    with pytest.raises(StoreError, match="log/: can't be listed"):
        store.list("log/")


def test_delete_removes_the_object(store: DirectoryStore) -> None:
    store.create("blobs/a", b"")
    store.delete("blobs/a")
    assert store.list("") == []


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "a/.b", ".tmp-1", "a b", "a\\b", "a\0b"]
    + ["é", "a/" * 10 + "a", "x" * 201],
)
def test_a_key_that_could_leave_the_root_is_refused(store: DirectoryStore, key: str) -> None:
    with pytest.raises(ValueError, match="a key is"):
        store.create(key, b"")
    with pytest.raises(ValueError, match="a key is"):
        store.read(key)


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "./"])
def test_a_prefix_that_could_leave_the_root_is_refused(store: DirectoryStore, prefix: str) -> None:
    with pytest.raises(ValueError, match="a prefix is"):
        store.list(prefix)


def test_a_full_or_broken_disk_is_a_store_error_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "registry").write_bytes(b"not a directory")
    with pytest.raises(StoreError, match="log/1: can't be stored"):
        DirectoryStore(tmp_path / "registry").create("log/1", b"")


def test_files_and_directories_get_the_modes_asked_for(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "private", file_mode=0o600, directory_mode=0o700)
    store.create("subjects/a", b"")
    assert stat.S_IMODE((tmp_path / "private" / "subjects" / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "private" / "subjects").stat().st_mode) == 0o700


def create_all(root: Path, name: str, results: Connection) -> None:
    store = DirectoryStore(root)
    won = []
    results.send("ready")
    results.recv()
    for key in KEYS:
        try:
            store.create(key, name.encode() * 1000)
        except AlreadyExistsError:
            continue
        won.append(key)
    results.send(won)


def test_of_racing_processes_exactly_one_creates_each_object(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for name in "abc":
        ours, theirs = context.Pipe()
        process = context.Process(target=create_all, args=(tmp_path / "registry", name, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")
    won = {name: pipe.recv() for name, pipe in zip("abc", pipes, strict=True)}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0

    assert sorted(key for keys in won.values() for key in keys) == KEYS
    store = DirectoryStore(tmp_path / "registry")
    for name, keys in won.items():
        assert all(store.read(key) == name.encode() * 1000 for key in keys)
