"""A lock for files that are read, changed and replaced: one writer at a time."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_POLL_S = 0.002  # a mark is raised before an act is acknowledged: nobody should wait long for it


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is in such a block for `path`, then enter it. The lock
    ends with its process.

    The lock is a file beside `path`, `.<name>.lock`, which stays. Everybody may open it, so that a
    command run once by root doesn't lock the server out.

    Raises: OSError (no such folder, no permission, a file system without locks).
    """
    if not path.parent.is_dir():  # FileLock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock, mode=0o666, poll_interval=_POLL_S, fallback_to_soft=False):
        yield
