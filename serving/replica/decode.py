"""From request bytes to a checked image: type, size and pixel count before any pixel is decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from serving.errors import ServingError

MAX_ASPECT = 20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Pillow warns of a bomb by its own limit; ours is checked before anything is decoded.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class DecodeError(ServingError):
    """The bytes are not an image that we take. `status` is the HTTP status that fits."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode `data` whole. Raises as `open_image` and `load_image`."""
    image = open_image(data, max_pixels=max_pixels)
    load_image(image)
    return image


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Read the header, no pixel yet. Raises `DecodeError`: 400 empty, 413 too many pixels, 422 not
    an image or a strip."""
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
        # Scaling the short side to the model's size would blow the long one up.
        raise DecodeError(422, f"The image is {width} x {height}; at most {MAX_ASPECT}:1 is taken.")
    return image


def load_image(image: Image.Image) -> None:
    """Decode the pixels. Raises `DecodeError`: 422 damaged."""
    try:
        image.load()
    except Exception as error:  # likewise
        raise DecodeError(422, f"The image is damaged or cut off: {error}.") from None


def _too_many(max_pixels: int) -> str:
    return f"The image has more than {max_pixels:,} pixels; scale it down."
