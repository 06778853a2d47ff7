"""`write_durably` survives a power cut after any system call."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.store.durable_file import (
    TEMPORARY_PREFIX,
    durable_file,
    make_folder,
    sync_folder,
    write_durably,
    write_new,
)
from tests.integration.registry.disk import Disk

OLD, NEW = b"old" * 1000, b"new" * 2000
KEPT = pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])


def in_pieces(path: Path, data: bytes) -> None:
    with durable_file(path) as file:
        file.write(data[:100])
        file.flush()
        file.write(data[100:])


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk")


def what_is_left(
    disk: Disk, calls: int, name: str, *, kept: float, tmp_path: Path, seed: int = 0
) -> bytes | None:
    """The file's content after a power cut. There is no other file but temporary ones."""
    left = tmp_path / f"after-{calls}-{seed}"
    disk.after_power_cut(calls, left, kept=kept, rng=random.Random(seed))
    others = {path.name for path in left.rglob("*") if path.is_file()} - {Path(name).name}
    assert all(other.startswith(TEMPORARY_PREFIX) for other in others)
    path = left / name
    return path.read_bytes() if path.exists() else None


@KEPT
@pytest.mark.parametrize("write", [write_durably, in_pieces])
def test_a_replaced_file_is_the_old_or_the_new_one_and_the_new_one_once_written(
    disk: Disk, tmp_path: Path, write: Callable[[Path, bytes], None], kept: float
) -> None:
    (disk.top / "file").write_bytes(OLD)
    with disk.recording():
        write(disk.top / "file", NEW)
        written = len(disk.calls)
    assert written >= 4
    for cut in range(written + 1):
        for seed in range(5):
            found = what_is_left(disk, cut, "file", kept=kept, tmp_path=tmp_path, seed=seed)
            assert found in (OLD, NEW)
            assert found == NEW or cut < written


@KEPT
def test_a_created_file_is_absent_or_whole_and_there_once_written(
    disk: Disk, tmp_path: Path, kept: float
) -> None:
    with disk.recording():
        write_durably(disk.top / "file", NEW, replace=False)
        written = len(disk.calls)
    for cut in range(written + 1):
        for seed in range(5):
            found = what_is_left(disk, cut, "file", kept=kept, tmp_path=tmp_path, seed=seed)
            assert found in (None, NEW)
            assert found == NEW or cut < written


@KEPT
def test_a_file_that_was_there_is_durable_when_creating_it_is_refused(
    disk: Disk, tmp_path: Path, kept: float
) -> None:
    path = disk.top / "file"
    with disk.recording():
        # Another writer was killed before it synced the name.
        write_new(disk.top / ".tmp-other", OLD, mode=0o644)
        os.link(disk.top / ".tmp-other", path)
        unsynced = len(disk.calls)
        with pytest.raises(FileExistsError):
            write_durably(path, NEW, replace=False)
    assert what_is_left(disk, unsynced, "file", kept=0.0, tmp_path=tmp_path, seed=1) is None
    assert what_is_left(disk, len(disk.calls), "file", kept=kept, tmp_path=tmp_path) == OLD


@KEPT
def test_a_file_that_another_writer_creates_meanwhile_is_durable_too(
    disk: Disk, tmp_path: Path, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = disk.top / "file"
    monkeypatch.setattr(Path, "exists", lambda self: False)  # it appeared after this check
    with disk.recording():
        write_new(disk.top / ".tmp-other", OLD, mode=0o644)
        os.link(disk.top / ".tmp-other", path)
        with pytest.raises(FileExistsError):
            write_durably(path, NEW, replace=False)
    monkeypatch.undo()
    assert what_is_left(disk, len(disk.calls), "file", kept=kept, tmp_path=tmp_path) == OLD


def test_a_made_folder_and_those_above_it_outlive_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    with disk.recording():
        make_folder(disk.top / "a" / "b" / "c")
        made = len(disk.calls)
        write_durably(disk.top / "a" / "b" / "c" / "file", NEW)
        written = len(disk.calls)
    disk.after_power_cut(made, tmp_path / "left", kept=0.0, rng=random.Random(0))
    assert (tmp_path / "left" / "a" / "b" / "c").is_dir()
    assert what_is_left(disk, written, "a/b/c/file", kept=0.0, tmp_path=tmp_path) == NEW


def test_a_folder_whose_maker_was_killed_is_durable_when_made_again(
    disk: Disk, tmp_path: Path
) -> None:
    with disk.recording():
        (disk.top / "folder").mkdir()
        make_folder(disk.top / "folder")
        made = len(disk.calls)
    disk.after_power_cut(made, tmp_path / "left", kept=0.0, rng=random.Random(0))
    assert (tmp_path / "left" / "folder").is_dir()


@pytest.mark.parametrize("skipped", ["file", "folder"])
def test_the_disk_would_show_a_write_that_forgets_to_sync(
    disk: Disk, tmp_path: Path, skipped: str
) -> None:
    """Tests the imitated disk, with writes through Python's `os` and without."""
    with disk.recording():
        with open(disk.top / ".tmp-x", "wb") as file:
            file.write(NEW)
            if skipped != "file":
                file.flush()
                os.fsync(file.fileno())
        os.replace(disk.top / ".tmp-x", disk.top / "file")
        if skipped != "folder":
            sync_folder(disk.top)
    assert what_is_left(disk, len(disk.calls), "file", kept=0.0, tmp_path=tmp_path) != NEW
