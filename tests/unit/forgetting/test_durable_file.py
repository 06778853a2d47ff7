from __future__ import annotations

import os
from pathlib import Path

import pytest

from forgetting.durable_file import new_folder, replace_file


def test_file_is_made_with_the_folders_above_it_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    for content in (b"first", b"second"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_file_that_can_not_be_written_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_is_written_whole_though_a_call_writes_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    replace_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_folder_appears_when_it_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "folder"
    with new_folder(folder) as beside:
        replace_file(beside / "one", b"1")
        assert not folder.exists()
    assert (folder / "one").read_text() == "1"
    assert os.listdir(folder.parent) == ["folder"]


def test_folder_that_was_not_finished_is_never_there(tmp_path: Path) -> None:
    def cut_off() -> None:
        with new_folder(tmp_path / "folder") as beside:
            replace_file(beside / "one", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert os.listdir(tmp_path) == []


def test_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    replace_file(tmp_path / "folder" / "old", b"old")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "folder") as beside:
        replace_file(beside / "one", b"1")
    assert os.listdir(tmp_path / "folder") == ["old"]
    assert os.listdir(tmp_path) == ["folder"]
