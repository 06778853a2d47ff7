"""What every store does, and the form of its keys: the same in a directory and in a bucket."""

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
        """Store `data` durably under a new key; when this returns it outlives a power cut.

        Raises: AlreadyExistsError (and then the object already there is durable), StoreError.
        """
        ...

    def create_all(
        self, objects: Mapping[str, bytes], *, then: tuple[str, bytes] | None = None
    ) -> tuple[str, ...]:
        """`create` for several, in little more time than the largest takes by itself, and `then`
        one more, which is never there, not after a power cut either, without all the others.

        Returns the keys that existed already. If there are any among `objects`, `then` is not
        created. After an error any of the new ones may be there.

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
        """Make an object as young, and as durable, as if it were created now.

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
        """What killed writers left before `before`, by name, and removed with `delete`."""
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
