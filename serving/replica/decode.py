"""Decodes the image in a request. Checks type, size and pixel count before it decodes a pixel."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from serving.errors import ServingError

MAX_ASPECT = 20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Pillow warns of decompression bombs by its own limit; `open_image` checks the settings' limit.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class DecodeError(ServingError):
    """The bytes are not an image that is accepted. `status` is the HTTP status to answer with."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode all of `data`. Raises as `open_image` and `load_image`."""
    image = open_image(data, max_pixels=max_pixels)
    load_image(image)
    return image


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Read the header and no pixels.

    Raises `DecodeError`: 400 for no bytes, 413 for too many pixels, 422 for what is not an image or
    is too long and narrow.
    """
    if not data:
        raise DecodeError(400, "The body is empty; send the bytes of one image.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DecodeError(
            422, f"The body is not an image in a known format ({', '.join(FORMATS)})."
        ) from None
    except Image.DecompressionBombError:
        raise DecodeError(413, _too_many(max_pixels)) from None
    except Exception as error:  # a damaged header can raise nearly anything in Pillow
        raise DecodeError(422, f"The image can't be read: {error}.") from None
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(413, f"{_too_many(max_pixels)} It has {width} x {height}.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        # Pre-processing scales the short side to the model's size; the long side would be huge.
        raise DecodeError(422, f"The image is {width} x {height}; at most {MAX_ASPECT}:1 is taken.")
    return image


def load_image(image: Image.Image) -> None:
    """Decode the pixels. Raises `DecodeError`: 422 for a damaged image."""
    try:
        image.load()
    except Exception as error:  # a damaged image can raise nearly anything in Pillow
        raise DecodeError(422, f"The image is damaged or cut off: {error}.") from None


def _too_many(max_pixels: int) -> str:
    return f"The image has more than {max_pixels:,} pixels; scale it down."
