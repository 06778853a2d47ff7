"""An image set: images, labels, class names and a train/val/test split, from whatever source.

Whatever is selected (strength, early stop) sees `val`, which is cut from the training images,
seeded and stratified; `test` is read once, for the report.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from forgetting.data.preprocess import eight_bits
from forgetting.errors import DataError

SPLITS = ("train", "val", "test")
# Sets below this many decoded bytes are decoded once, when they are opened.
KEEP_BYTES = 512 * 2**20

Pixels = NDArray[np.uint8]
Source = Pixels | Path | bytes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels and a split.

    Attributes:
        name: Short name for logs and reports.
        classes: Class names; a label is an index into them.
        labels: Int64 (n,).
        split: One of `SPLITS` per image.
        sources: Per image either decoded pixels, uint8 (h, w) or (h, w, 3), or its file, or the
            bytes of such a file.
        manifest_digest: `sha256:<hex>` over every image's bytes, label and split.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] = field(repr=False)
    split: tuple[str, ...] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)
    manifest_digest: str

    def __len__(self) -> int:
        return len(self.sources)


def drawn_split(
    labels: NDArray[np.int64],
    *,
    given: Sequence[str] | None,
    seed: int,
    test_share: float,
    val_share: float,
) -> tuple[str, ...]:
    """Per class: test where not given, then val from the rest (at least one of three images).

    Args:
        labels: (n,).
        given: One of `SPLITS` per image where the source says so; None draws the test images too.
        seed: The same seed gives the same split.
        test_share: Of each class's images, where nothing is given.
        val_share: Of each class's remaining images, where none is given.
    """
    rng = np.random.default_rng(seed)
    split = np.array(given if given is not None else ["train"] * len(labels), dtype=object)
    for label in np.unique(labels):
        if given is None:
            own = rng.permutation(np.flatnonzero(labels == label))
            split[own[: max(1, round(test_share * len(own)))]] = "test"
        own = rng.permutation(np.flatnonzero((labels == label) & (split == "train")))
        has_val = bool(((labels == label) & (split == "val")).any())
        if not has_val and len(own) >= 3:
            split[own[: max(1, round(val_share * len(own)))]] = "val"
    return tuple(str(s) for s in split)


def check_counts(
    where: str, names: Sequence[str], labels: NDArray[np.int64], split: Sequence[str]
) -> None:
    """Every class needs an image to learn from and one to report on.

    Raises:
        DataError: Names the class and `where`.
    """
    kinds = np.array(split)
    for label, name in enumerate(names):
        own = kinds[labels == label]
        if len(own) == 1:
            raise DataError(
                f"class {name!r} in {where} has 1 image; at least 2 are needed, one to learn from "
                "and one to report on"
            )
        for needed in ("train", "test"):
            if needed not in own:
                raise DataError(f"class {name!r} in {where} has no {needed} image")


def decoded(content: bytes, where: str) -> Pixels:
    """Grey (h, w) or colour (h, w, 3) pixels of an image file's bytes.

    Raises:
        DataError: It is no whole image; names `where`.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            whole = eight_bits(picture)
            return np.asarray(whole.convert("L" if whole.mode in ("1", "L", "I", "F") else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} can't be decoded: {error}") from error


def digest_of(entries: Iterable[tuple[bytes, int, str]]) -> str:
    """`sha256:<hex>` over (content, label, split) of every image, in order."""
    digest = hashlib.sha256()
    for content, label, part in entries:
        digest.update(hashlib.sha256(content).digest() + f"|{label}|{part}\n".encode())
    return f"sha256:{digest.hexdigest()}"
