"""Sizes and colours of an image set's images, from the headers of their files.

Nothing is decoded: a header costs microseconds, so that every image can be looked at.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from forgetting.data.image_set import GREY_MODES, ImageSet, Source
from forgetting.errors import DataError


@dataclass(frozen=True)
class Header:
    """Width and height in pixels; `grey` if the image decodes to one channel."""

    width: int
    height: int
    grey: bool


def headers(images: ImageSet, rows: Sequence[int] | NDArray[np.int64]) -> list[Header]:
    """The headers of these images, in order.

    Raises:
        DataError: A file can't be read or is no image. The message names it.
    """
    return [_header(images.sources[int(i)], f"image {i} of {images.name}") for i in rows]


def _header(source: Source, where: str) -> Header:
    if isinstance(source, np.ndarray):
        return Header(source.shape[1], source.shape[0], source.ndim == 2)
    if isinstance(source, Path):
        where = f"image {source}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            grey = picture.mode in GREY_MODES or picture.mode.startswith("I;16")
            return Header(picture.width, picture.height, grey)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} can't be decoded: {error}") from error
