"""Strict JSON reading: every error names the field and shows what was found."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from registry.errors import FormatError
from registry.schema import Fields, decode_json, encode_json, encode_time

WORD = re.compile(r"[a-z]+")


def fields(**values: Any) -> Fields:
    return Fields(values, where="file")


@pytest.mark.parametrize(
    ("take", "value"),
    [
        (lambda f: f.text("x", WORD), 1),
        (lambda f: f.text("x", WORD), "Abc"),
        (lambda f: f.text("x", WORD), "abc\n"),
        (lambda f: f.free_text("x", at_most=5), "123456"),
        (lambda f: f.free_text("x", at_most=5), "a\nb"),
        (lambda f: f.free_text("x", at_most=5), None),
        (lambda f: f.free_text("x", at_least=1, at_most=5), ""),
        (lambda f: f.integer("x", at_least=1), 0),
        (lambda f: f.integer("x", at_least=1), 1.0),
        (lambda f: f.integer("x", at_least=1), True),
        (lambda f: f.integer("x", at_least=1), "1"),
        (lambda f: f.number("x", at_least=0), -0.5),
        (lambda f: f.number("x", at_least=0), float("inf")),
        (lambda f: f.number("x", at_least=0), float("nan")),
        (lambda f: f.number("x", at_least=0), False),
        (lambda f: f.choice("x", ("a", "b")), "c"),
        (lambda f: f.choice("x", ("a", "b")), ["a"]),
        (lambda f: f.texts("x", WORD), "ab"),
        (lambda f: f.texts("x", WORD), ["a", 1]),
        (lambda f: f.texts("x", WORD), ["a", "B"]),
        (lambda f: f.texts("x", WORD), ["a", "a"]),
        (lambda f: f.texts("x", WORD, at_least=1), []),
        (lambda f: f.texts("x", WORD, in_order=True), ["b", "a"]),
        (lambda f: f.time("x"), "2026-11-20T14:03:58Z"),
        (lambda f: f.time("x"), "2026-11-20T14:03:58.123+00:00"),
        (lambda f: f.time("x"), "2026-13-20T14:03:58.123Z"),
        (lambda f: f.mapping("x"), []),
        (lambda f: f.fields("x"), []),
    ],
)
def test_an_ill_typed_field_is_refused_by_name(take: Callable[[Fields], Any], value: Any) -> None:
    with pytest.raises(FormatError, match="file: field x: expected") as caught:
        take(fields(x=value))
    assert caught.value.check == "schema"


def test_a_missing_field_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="field x: missing"):
        fields(y=1).integer("x", at_least=0)


def test_an_unknown_field_is_refused_by_name() -> None:
    left = fields(x=1, y=2)
    left.integer("x", at_least=0)
    with pytest.raises(FormatError, match="field y: this version doesn't know"):
        left.finish()


def test_a_nested_field_is_named_with_its_path() -> None:
    with pytest.raises(FormatError, match="field body.release: missing"):
        fields(body={}).fields("body").integer("release", at_least=0)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b'{"a":' * 20_000]
)
def test_what_is_not_one_plain_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="file: "):
        decode_json(data, where="file")


def test_encoding_is_canonical() -> None:
    assert encode_json({"b": [1, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null]}'
    with pytest.raises(ValueError, match="JSON"):
        encode_json({"a": float("nan")})


def test_a_time_is_written_in_utc_with_milliseconds_and_read_back() -> None:
    time = datetime(2026, 11, 20, 15, 3, 58, 123999, tzinfo=timezone(timedelta(hours=1)))
    assert encode_time(time) == "2026-11-20T14:03:58.123Z"
    expected = datetime(2026, 11, 20, 14, 3, 58, 123000, tzinfo=UTC)
    assert fields(x=encode_time(time)).time("x") == expected
