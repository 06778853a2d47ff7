"""Parts of an image set: some of its classes, all but some, or a few images of each.

The digest of a part is computed from the digest of the whole and from what was kept. Two parts with
the same digest are the same images with the same labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forgetting.data.image_set import SPLITS, ImageSet, class_index
from forgetting.errors import DataError


def some_classes(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Only these classes, labelled 0, 1, ... in the order given.

    Raises:
        DataError: A class is unknown or named twice, or there are fewer than 2.
    """
    old = [class_index(images, name) for name in names]
    if len(set(old)) < max(2, len(old)):
        raise DataError(f"expected at least 2 different classes of {images.name}, found {names!r}")
    new = np.full(len(images.classes), -1, dtype=np.int64)
    new[old] = np.arange(len(old))
    kept = np.flatnonzero(new[images.labels] >= 0)
    part = replace(images, classes=tuple(names), labels=new[images.labels])
    return _rows(part, kept)


def without_classes(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The set without these classes' images. Class names and label numbers stay the same.

    This is for a model retrained without the classes, and for classes whose images are missing.

    Raises:
        DataError: An unknown class, or no image is left.
    """
    gone = [class_index(images, name) for name in names]
    kept = np.flatnonzero(~np.isin(images.labels, gone))
    if not len(kept):
        raise DataError(f"without {len(gone)} classes {images.name} has no images left")
    return _rows(images, kept)


def limited(images: ImageSet, per_class: int, *, split: str = "train", seed: int = 0) -> ImageSet:
    """Keep at most `per_class` images of each class in `split`, drawn with `seed`.

    The other splits stay whole. With the same seed, a smaller `per_class` keeps a part of what a
    larger one keeps.

    Raises:
        DataError: An unknown split, or `per_class` below 1.
    """
    if split not in SPLITS or per_class < 1:
        raise DataError(
            f"can't keep {per_class} images of each class in split {split!r}; expected at least 1 "
            f"in one of {', '.join(SPLITS)}"
        )
    rng = np.random.default_rng(seed)
    inside = np.array([part == split for part in images.split])
    keep = ~inside
    for label in range(len(images.classes)):
        own = rng.permutation(np.flatnonzero(inside & (images.labels == label)))
        keep[own[:per_class]] = True
    return _rows(images, np.flatnonzero(keep))


def _rows(images: ImageSet, kept: NDArray[np.int64]) -> ImageSet:
    """The images at these positions."""
    labels = images.labels[kept]
    digest = hashlib.sha256(f"{images.manifest_digest}\n{images.classes}\n".encode())
    digest.update(kept.astype("<i8").tobytes() + labels.astype("<i8").tobytes())
    return ImageSet(
        name=images.name,
        classes=images.classes,
        labels=labels,
        split=tuple(images.split[i] for i in kept),
        sources=tuple(images.sources[i] for i in kept),
        manifest_digest=f"sha256:{digest.hexdigest()}",
    )
