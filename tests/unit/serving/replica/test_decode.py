"""Which bytes are accepted as an image, and how the others are refused."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from serving.replica.decode import DecodeError, decode_image

LIMIT = 1_000_000


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims an image of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_known_formats_are_decoded(kind: str) -> None:
    assert decode_image(encoded(kind), max_pixels=LIMIT).size == (40, 30)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"<html>no image</html>", 422, "not an image"),
        (encoded("PNG")[:-40], 422, "damaged or cut off"),
        (encoded("JPEG", (300, 300))[:2000], 422, "damaged or cut off"),
        (encoded("GIF"), 422, "known format"),
        (png_claiming(2000, 2000), 413, "2000 x 2000"),
        (png_claiming(10_000, 10_000), 413, "10000 x 10000"),
        (png_claiming(100_000, 100_000), 413, "pixels"),
        (png_claiming(900, 900), 422, "damaged or cut off"),
        (png_claiming(40_000, 2), 422, "at most 20:1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(data: bytes, status: int, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, max_pixels=LIMIT)
    assert caught.value.status == status
    assert words in caught.value.detail
