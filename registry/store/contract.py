"""The form of a store's keys: names that are the same in a directory and in a bucket."""

from __future__ import annotations

import re

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,9}}")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")


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
