"""Files and folders that are whole and outlast a power cut, or aren't there at all.

`forgetting` may not import `registry`, so it has this module of its own beside
`registry.store.durable_file`, which `registry` and `serving` use.

Each is written under a temporary name beside its own, synced, and renamed into place. Then the
folder above is synced, so that the name lasts too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably. A reader sees the old file or the whole new one, never a part.

    Folders above it that don't exist are made. When this returns, a power cut takes nothing back.

    Raises:
        OSError: It can't be written; then the old file is still there.
    """
    _make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            left = memoryview(content)
            while left:  # one call writes 2 GB at most
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill with `replace_file`, which becomes `folder` when the block ends.

    After an error or a power cut inside the block there is no `folder`.

    Raises:
        OSError: It can't be made, or `folder` exists and holds something.
    """
    _make_folder(folder.parent)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        os.rename(beside, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make it and those above it, each durable in the one above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
