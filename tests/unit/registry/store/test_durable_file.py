"""`write_durably`: the file's content and mode, and what is left after a failure.

Power cuts are in `tests/integration/registry/test_durable_file.py`.
"""

import os
import stat
from pathlib import Path

import pytest

from registry.store.durable_file import durable_file, make_folder, write_durably


def test_a_file_is_created_and_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old", mode=0o600)
    assert path.read_bytes() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_an_existing_file_stays_without_replace(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"first", replace=False)
    with pytest.raises(FileExistsError, match="file"):
        write_durably(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_an_existing_file_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mounted for reading")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a read-only folder would refuse this")

    monkeypatch.setattr(os, "write", refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FileExistsError):
        write_durably(path, b"mine", replace=False)


def test_a_block_that_raises_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half_of_the_new() -> None:
        with durable_file(path) as file:
            file.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_of_the_new()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_durably(tmp_path / "nowhere" / "file", b"data")


def test_a_folder_is_made_with_its_mode_once_or_twice(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "home" / "keys", mode=0o700)
    assert stat.S_IMODE((tmp_path / "home" / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) & 0o055


def test_where_a_folder_should_be_there_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(OSError, match="home"):
        make_folder(tmp_path / "home")
