"""The input of a small ViT: its size and its colour, chosen from the headers of all images.

The two errors that a choice can make don't weigh the same. An input that is too small, or grey,
throws away what tells classes apart; one that is too large, or has colour, costs time only. So the
choice falls on the larger one and on colour, unless (nearly) no image would gain by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forgetting.data.headers import headers
from forgetting.data.image_set import ImageSet, indices

# Images whose longer side is below this many pixels are tiny: 16 pixels keep what they show.
TINY_BELOW = 32
# The input is 16 pixels unless more than this share of the images is larger than tiny.
LARGER_SHARE = 0.05


@dataclass(frozen=True)
class InputChoice:
    """Side and patch in pixels, the number of channels, and a sentence that says why."""

    side: int
    patch: int
    channels: int
    why: str


def choose_input(images: ImageSet) -> InputChoice:
    """Choose from the training and validation images; the test images have no say.

    - 16 pixels in patches of 4 if at most one image in 20 has a side of 32 pixels or more; else 48
      pixels in patches of 8.
    - One channel if every image is grey; else three.

    Raises:
        DataError: A file can't be read or is no image.
    """
    looked = headers(images, np.concatenate([indices(images, "train"), indices(images, "val")]))
    n = len(looked)
    larger = sum(max(head.width, head.height) >= TINY_BELOW for head in looked)
    grey = sum(head.grey for head in looked)
    tiny = larger <= LARGER_SHARE * n
    side, patch = (16, 4) if tiny else (48, 8)
    odd = larger if tiny else n - larger
    sizes = f"all {n} images" if odd == 0 else f"{n - odd} of {n} images"
    sizes += f" are {'smaller' if tiny else 'not smaller'} than {TINY_BELOW} pixels"
    if odd:
        sizes += f", {odd} {'larger' if tiny else 'smaller'}"
    if grey in (0, n):
        colours = f"all are {'grey' if grey else 'in colour'}"
    else:
        colours = f"{n - grey} are in colour, {grey} grey"
    channels = 1 if grey == n else 3
    name = "grey" if channels == 1 else "colour"
    return InputChoice(side, patch, channels, f"{side}x{side} pixels, {name}: {sizes}; {colours}")
