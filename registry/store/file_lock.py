"""One writer at a time of a file that is read, changed and replaced."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_POLL_S = 0.002  # a mark is raised before an act is acknowledged: nobody should wait long for it


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Wait until nobody else is in such a block for `path`; a killed holder is out of it.

    The lock is a file beside `path`, `.<name>.lock`, which stays. Everybody may open it: a command
    that root ran once must not lock the server out.

    Raises: OSError (no such folder, no permission, a file system without locks).
    """
    if not path.parent.is_dir():  # FileLock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock, mode=0o666, poll_interval=_POLL_S, fallback_to_soft=False):
        yield
