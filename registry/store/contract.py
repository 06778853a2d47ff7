"""What every store does, and the form of its keys: the same in a directory and in a bucket.

Create-if-absent is the one conditional operation that a POSIX directory, S3, GCS and Azure all
have, so the ledger is built on it alone. A store overwrites nothing, on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,9}}")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")


class Store(Protocol):
    """Objects by key. Keys are "/"-separated segments of letters, digits, ".", "_" and "-"."""

    def create(self, key: str, data: bytes) -> None:
        """Store `data` under a new key. When this returns, it outlives a power cut.

        Raises: AlreadyExistsError (then the existing object is durable), StoreError.
        """
        ...

    def create_all(
        self, objects: Mapping[str, bytes], *, then: tuple[str, bytes] | None = None
    ) -> tuple[str, ...]:
        """Create several objects, and after them `then`, which never exists without all the others,
        not even after a power cut. Takes little longer than creating the largest alone.

        Returns the keys that existed already. If one of `objects` did, `then` is not created.
        After an error, some of the objects may have been created.

        Raises: StoreError.
        """
        ...

    def read(self, key: str, *, at_most: int | None = None) -> bytes:
        """The object's bytes, or only its first `at_most`. Raises: NotFoundError, StoreError."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted. Raises: StoreError."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object: for the subject map, never for the log. (Blobs: `delete_older`.)

        Raises: NotFoundError, StoreError.
        """
        ...

    def touch(self, key: str) -> None:
        """Make an object as new, and as durable, as if it were created now.

        Raises: NotFoundError, StoreError.
        """
        ...

    def older(self, prefix: str, *, before: datetime) -> tuple[str, ...]:
        """The keys of `list` whose objects were neither created nor touched since `before`."""
        ...

    def delete_older(self, key: str, *, before: datetime) -> bool:
        """Remove an object unless it was created or touched since `before`, and say whether.

        Whoever touches an object and then finds it still there can rely on it.

        Raises: StoreError.
        """
        ...

    def leftovers(self, *, before: datetime, delete: bool) -> tuple[str, ...]:
        """The names of what killed writers left before `before`; `delete` removes it."""
        ...


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def check_key(key: str) -> None:
    """Raises: ValueError (not the form of a key)."""
    if not is_key(key):
        raise ValueError(
            f"a key is 1 to 10 segments of letters, digits, '._-', joined by '/' and none "
            f"starting with a dot; found {key!r}"
        )


def check_prefix(prefix: str) -> None:
    """Raises: ValueError (no key could start so)."""
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"a prefix is made of letters, digits, '._-' and '/', not {prefix!r}")
