"""Strict reading of JSON objects: every field is taken by name and type, and none is left over.

A missing, ill-typed or unknown field is a `FormatError` that names it. Hand-written, because the
record types are few and the messages are what an operator gets to see.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeAlias

from registry.errors import FormatError

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
SUBJECT = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@#/-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


def encode_json(value: Mapping[str, Json]) -> bytes:
    """The canonical form: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def decode_json(data: bytes, *, where: str) -> dict[str, Any]:
    """One JSON object. Raises: FormatError for anything else, repeated keys and NaN included."""
    try:
        value = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", check="schema", where=where) from None
    if not isinstance(value, dict):
        raise FormatError(
            f"expected a JSON object, found {_shown(value)}", check="schema", where=where
        )
    return value


def decode_written(data: bytes, *, where: str) -> dict[str, Any]:
    """As `decode_json`, but only for the bytes that `encode_json` writes: any other is refused."""
    value = decode_json(data, where=where)
    if encode_json(value) != data:
        raise FormatError(
            "expected JSON as this registry writes it, to the byte; restore the file from a copy",
            check="schema",
            where=where,
        )
    return value


def encode_time(time: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, "2026-11-20T14:03:58.123Z"."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Fields:
    """The fields of one JSON object, each to be taken exactly once, then `finish`ed."""

    def __init__(self, value: object, *, where: str, path: str = "") -> None:
        self._where = where
        self._path = path
        if not isinstance(value, dict):
            self.refuse(None, f"expected a JSON object, found {_shown(value)}")
        self._left: dict[str, Any] = dict(value)

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """A string that `pattern` matches from end to end."""
        value = self._take(name)
        if not (isinstance(value, str) and pattern.fullmatch(value)):
            self.refuse(name, f"expected text like {pattern.pattern}, found {_shown(value)}")
        return value

    def free_text(self, name: str, *, at_least: int = 0, at_most: int) -> str:
        """Text for people: printable, on one line, `at_least` to `at_most` characters."""
        value = self._take(name)
        if not (
            isinstance(value, str) and at_least <= len(value) <= at_most and value.isprintable()
        ):
            self.refuse(
                name,
                f"expected {at_least} to {at_most} printable characters on one line, found "
                f"{_shown(value)}",
            )
        return value

    def integer(self, name: str, *, at_least: int) -> int:
        value = self._take(name)
        # bool is an int to Python, not to JSON
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            self.refuse(name, f"expected a whole number >= {at_least}, found {_shown(value)}")
        return value

    def number(self, name: str, *, at_least: float) -> float:
        value = self._take(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (math.isfinite(value) and value >= at_least)
        ):
            self.refuse(name, f"expected a number >= {at_least}, found {_shown(value)}")
        return float(value)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._take(name)
        if value not in choices:
            self.refuse(name, f"expected one of {', '.join(choices)}, found {_shown(value)}")
        return str(value)

    def choices(self, name: str, choices: tuple[str, ...], *, at_least: int = 0) -> tuple[str, ...]:
        """Distinct strings, each one of `choices`."""
        return self.texts(name, re.compile("|".join(map(re.escape, choices))), at_least=at_least)

    def texts(
        self, name: str, pattern: re.Pattern[str], *, at_least: int = 0, in_order: bool = False
    ) -> tuple[str, ...]:
        """Distinct strings that `pattern` matches; with `in_order`, they must be sorted."""
        values = self._take(name)
        if not isinstance(values, list):
            self.refuse(name, f"expected a list, found {_shown(values)}")
        try:
            fit = all(map(pattern.fullmatch, values))
        except TypeError:  # something in it is no string
            fit = False
        if not fit:
            self.refuse(name, f"expected texts like {pattern.pattern}, found {_shown(values)}")
        if len(values) < at_least or len(set(values)) != len(values):
            self.refuse(name, f"expected {at_least} or more, all different, found {_shown(values)}")
        if in_order and values != sorted(values):
            self.refuse(name, f"expected sorted texts, found {_shown(values)}")
        return tuple(values)

    def time(self, name: str) -> datetime:
        """A time as `encode_time` writes it."""
        text = self.text(name, _TIME)
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            self.refuse(name, f"expected a date and time that exist, found {text!r}")

    def mapping(self, name: str) -> dict[str, Any]:
        """A nested object with free keys."""
        value = self._take(name)
        if not isinstance(value, dict):
            self.refuse(name, f"expected a JSON object, found {_shown(value)}")
        return value

    def fields(self, name: str) -> "Fields":
        """A nested object with fixed keys."""
        return Fields(self._take(name), where=self._where, path=f"{self._path}{name}.")

    def is_null(self, name: str) -> bool:
        """Whether the field holds null; it is then taken."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return True
        return False

    def mark(self, name: str) -> bool:
        """Whether the object has the field. It holds true, or is left out."""
        if name not in self._left:
            return False
        value = self._take(name)
        if value is not True:
            self.refuse(name, f"expected true or nothing, found {_shown(value)}")
        return True

    def holds(self, name: str) -> bool:
        """Whether the object has the field. For fields that later versions added."""
        return name in self._left

    def finish(self) -> None:
        """Refuse what has not been taken."""
        if self._left:
            self.refuse(sorted(self._left)[0], "this version doesn't know the field")

    def refuse(self, name: str | None, problem: str) -> NoReturn:
        """Raise the FormatError for the field `name` (None: for the object itself)."""
        label = f"{self._path}{name}" if name is not None else self._path.rstrip(".") or "object"
        raise FormatError(f"field {label}: {problem}", check="schema", where=self._where)

    def _take(self, name: str) -> Any:
        if name not in self._left:
            self.refuse(name, "missing")
        return self._left.pop(name)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# `json.loads` would make one of these for each record.
_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated, parse_constant=_refuse_constant)
