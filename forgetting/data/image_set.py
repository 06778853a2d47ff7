"""An image set: images, labels, class names and a train/val/test split.

`val` is cut from the training images, by seed and class by class. Everything that is selected
(strength, early stop) is selected on `val`. `test` is read once, for the report. `sources` opens
image sets.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from forgetting.data.preprocess import Preprocess, eight_bits, transform
from forgetting.errors import DataError

SPLITS = ("train", "val", "test")
# Sets below this many decoded bytes are decoded once, when they are opened.
KEEP_BYTES = 512 * 2**20
# Pillow's modes that decode to one channel; so do those of 16 bits.
GREY_MODES = ("1", "L", "I", "F")

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
        sources: One per image: its decoded pixels, uint8 (h, w) or (h, w, 3), or the path of its
            file, or the bytes of that file.
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
    """Complete a split, class by class: first the test images, then val from the rest.

    A class with at least three images left gets at least one for val.

    Args:
        labels: (n,).
        given: The split that the source gives, one of `SPLITS` per image. None draws the test
            images too. A class with given val images keeps those.
        seed: The same seed gives the same split.
        test_share: Share of each class's images for test, if no split is given.
        val_share: Share of each class's remaining images for val.
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
    """Check that every class has an image to learn from and one to report on.

    Raises:
        DataError: A class hasn't. The message names the class and `where`.
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
        DataError: It isn't a whole image. The message names `where`.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            whole = eight_bits(picture)
            return np.asarray(whole.convert("L" if whole.mode in GREY_MODES else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} can't be decoded: {error}") from error


def digest_of(entries: Iterable[tuple[bytes, int, str]]) -> str:
    """`sha256:<hex>` over (content, label, split) of every image, in order."""
    digest = hashlib.sha256()
    for content, label, part in entries:
        digest.update(hashlib.sha256(content).digest() + f"|{label}|{part}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def indices(
    images: ImageSet, split: str, *, classes: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Positions of the images of one split, in order. `classes` keeps only those classes.

    Raises:
        DataError: An unknown split or class.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    chosen = np.array([s == split for s in images.split])
    if classes is not None:
        chosen &= np.isin(images.labels, [class_index(images, name) for name in classes])
    return np.flatnonzero(chosen).astype(np.int64)


def class_index(images: ImageSet, name: str) -> int:
    """The label of a class.

    Raises:
        DataError: The set has no such class.
    """
    if name not in images.classes:
        shown = ", ".join(images.classes[:10]) + (", ..." if len(images.classes) > 10 else "")
        raise DataError(f"{images.name} has no class {name!r}; its classes are {shown}")
    return images.classes.index(name)


def for_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The same images, labelled by the rows of a head with these class names.

    The head may have classes without images.

    Raises:
        DataError: The set has classes that the head doesn't have.
    """
    foreign = sorted(set(images.classes) - set(classes))
    if foreign:
        raise DataError(
            f"{images.name} has {len(foreign)} classes that the backbone doesn't know: "
            f"{', '.join(foreign[:5])}; its sub-folders must bear the backbone's class names"
        )
    if tuple(classes) == images.classes:
        return images
    row = {name: i for i, name in enumerate(classes)}
    rows = np.array([row[name] for name in images.classes], dtype=np.int64)
    return replace(images, classes=tuple(classes), labels=rows[images.labels])


def replay(
    images: ImageSet,
    *,
    per_class: int,
    generator: torch.Generator,
    classes: Sequence[str] | None = None,
    split: str = "train",
) -> NDArray[np.int64]:
    """Positions of at most `per_class` images of each class, drawn without replacement."""
    drawn = []
    for name in classes if classes is not None else images.classes:
        own = indices(images, split, classes=[name])
        order = torch.randperm(len(own), generator=generator).numpy()
        drawn.append(own[order[:per_class]])
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, dtype=np.int64)


def image(images: ImageSet, index: int) -> Image.Image:
    """The decoded image.

    Raises:
        DataError: Its file can't be decoded.
    """
    source = images.sources[index]
    if isinstance(source, bytes):
        source = decoded(source, f"image {index} of {images.name}")
    elif isinstance(source, Path):
        source = decoded(content_of(source), f"image {source}")
    return Image.fromarray(source)


def png_bytes(picture: Image.Image) -> bytes:
    """The image as a PNG file, as a client would send it."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def to_tensors(
    images: ImageSet, chosen: Sequence[int] | NDArray[np.int64], preprocess: Preprocess
) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) float32 and labels (n,) int64, through the transform that serving uses.

    Raises:
        DataError: An image can't be decoded.
    """
    apply = transform(preprocess)
    x = torch.empty(len(chosen), *preprocess.input_size)
    for row, i in enumerate(chosen):
        x[row] = apply(image(images, int(i)))
    y = torch.from_numpy(images.labels[np.asarray(chosen, dtype=np.int64)])
    return x, y


def content_of(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: It can't be read. The message names it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"image {path} can't be read: {error.strerror}") from error
