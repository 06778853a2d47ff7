"""Claims: several processes may run the same command, and each result is computed only once.

A claim is a lock on a file beside the result. It is a `flock`, so the kernel ends it when its
process dies. For people, the file holds the process id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Claimed(Exception):
    """Another process is computing this; come back later."""


@contextlib.contextmanager
def claim(result: Path) -> Iterator[None]:
    """Hold the claim on `result` (a file or folder that need not exist).

    Raises:
        Claimed: Another process holds it.
    """
    lock = result.with_name(f".{result.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(lock)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # while still locked, so that a waiting process sees it gone
        os.close(descriptor)


def _locked(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Claimed(str(lock)) from None
        if _same_file(descriptor, lock):
            return descriptor
        os.close(descriptor)  # the holder removed the file between our open and our lock


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)
