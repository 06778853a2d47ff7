"""Files that are whole or not there at all, and still there after a power cut.

This is the one way in which `registry` and `serving` write such a file. `forgetting`, which may not
import `registry`, has its own in `forgetting.durable_file`.

A file is written beside its place and synced, then given its name, and then its folder is synced:
a name always stands for complete bytes, and it lasts once the call has returned.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".tmp-"
"""Starts a file's name until the file is whole. No key of a store starts with a dot."""


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Put `data` at `path`. A reader, or a power cut, finds the old file or the whole new one.

    With `replace=False` an existing file stays as it is. It is durable when this raises.

    Raises: FileExistsError (only with `replace=False`), OSError.
    """
    with _named(path, replace=replace) as temporary:
        write_new(temporary, data, mode=mode)


@contextmanager
def durable_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """As `write_durably`, for bytes that come piece by piece. They are at `path` when the block has
    ended. If it raises, `path` stays as it was.
    """
    with _named(path, replace=True) as temporary, open(_create(temporary, mode), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write and sync a new file. Its name may not outlive a power cut before `sync_folder`.

    Raises: FileExistsError, OSError.
    """
    descriptor = _create(path, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and those above it that are missing, so that they outlive a power cut.

    Raises: OSError.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(mode=mode if folder == path else 0o777, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # the parent may be closed to readers
            sync_folder(folder.parent)
    if not missing:
        # Its maker may have been killed before the sync. Some file systems sync no folder that is
        # not ours; a folder that was there long ago needs none.
        with suppress(OSError):
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder, as they are now, outlive a power cut. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of `path`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")


@contextmanager
def _named(path: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary path to write to. It becomes `path` when the block ends."""
    temporary = temporary_beside(path)
    try:
        if not replace and path.exists():  # before anything is written: the folder may be read-only
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        yield temporary
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        sync_folder(path.parent)  # its writer may have been killed before this
        raise
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    sync_folder(path.parent)


def _create(path: Path, mode: int) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
