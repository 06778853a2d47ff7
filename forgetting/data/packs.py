"""Packs: a whole image set in one `.npz` file.

Every pack has `labels` (n,), `split` (n,) with 0 for train and 1 for test, and `classes` (k,).
The images come in one of two forms:

- one-bit drawings: `bits` (n, ceil(h * w / 8)), packed by `np.packbits`, with 1 for ink, and
  `shape` = (h, w);
- image files, one after the other: `blob` (bytes,) and `offsets` (n + 1,).

Nothing in a pack is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetting.data.image_set import (
    KEEP_BYTES,
    ImageSet,
    Pixels,
    Source,
    check_counts,
    decoded,
    digest_of,
    drawn_split,
)
from forgetting.errors import DataError

SUFFIX = ".npz"
_FACTS = ("classes", "labels", "split")
_LAYOUTS = (("bits", "shape"), ("blob", "offsets"))
_PARTS = ("train", "test")

Arrays = Mapping[str, NDArray[Any]]


def pack_in(path: Path) -> Path | None:
    """The pack at `path`: the file itself, or the only pack in a folder without sub-folders.

    None where there is no pack.

    Raises:
        DataError: A folder without sub-folders holds several packs.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or any(p.is_dir() for p in path.iterdir() if p.name[0] != "."):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:5])
        raise DataError(f"{path} holds {len(found)} packs ({names}); name one of the files")
    return found[0] if found else None


def image_pack(
    path: str | Path,
    *,
    name: str | None = None,
    seed: int = 0,
    val_share: float = 0.15,
    keep_bytes: int = KEEP_BYTES,
) -> ImageSet:
    """The image set in a pack.

    One-bit drawings become grey pixels: white ink (255) on black. Every image file is decoded
    once, so that a broken one is found now. The decoded pixels are kept if all of them fit.

    Args:
        path: The `.npz` file.
        name: Name of the set; None takes the file's.
        seed: Seed of the validation split. The pack itself says which images are for test.
        val_share: Share of each class's training images held out for selection.
        keep_bytes: If all pixels take more than this, the image files stay encoded in memory.

    Raises:
        DataError: It isn't a pack, or it is damaged. The message names the array that is wrong.
    """
    file = Path(path)
    arrays = _read(file)
    layout = next((keys for keys in _LAYOUTS if set(keys) <= arrays.keys()), None)
    missing = [key for key in _FACTS if key not in arrays]
    if layout is None or missing:
        raise DataError(
            f"{file} is no pack of images: expected {', '.join(_FACTS)} and either bits, shape "
            f"or blob, offsets; found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    names, labels, given = _facts(file, arrays)
    split = drawn_split(labels, given=given, seed=seed, test_share=0.0, val_share=val_share)
    check_counts(str(file), names, labels, split)
    if layout == _LAYOUTS[0]:
        sources, contents = _drawings(file, arrays, len(labels))
    else:
        sources, contents = _files(file, arrays, len(labels), keep_bytes=keep_bytes)
    digest = digest_of(
        (content, int(y), part) for content, y, part in zip(contents, labels, split, strict=True)
    )
    return ImageSet(name or file.stem, names, labels, split, sources, digest)


def _read(file: Path) -> Arrays:
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{file} holds a single array, not the arrays of a pack")
        with archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"pack {file} does not exist") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is not a whole .npz file of plain arrays: {error}") from error


def _facts(
    file: Path, arrays: Arrays
) -> tuple[tuple[str, ...], NDArray[np.int64], tuple[str, ...]]:
    """Class names, labels and the given split, each checked."""
    classes, labels, split = (arrays[key] for key in _FACTS)
    _check(file, "classes", classes, ndim=1, kinds="U", what="text")
    names = tuple(str(name) for name in classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{file}: expected at least 2 different class names, found {len(names)}")
    _check(file, "labels", labels, ndim=1, kinds="iu", what="integers")
    _check(file, "split", split, ndim=1, kinds="iu", what="integers")
    if len(labels) != len(split):
        raise DataError(f"{file}: {len(labels)} labels but {len(split)} entries in split")
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        raise DataError(
            f"{file}: image {int(outside.argmax())} has label {labels[outside][0]}, but there are "
            f"{len(names)} class names"
        )
    unknown = ~np.isin(split, (0, 1))
    if unknown.any():
        raise DataError(
            f"{file}: image {int(unknown.argmax())} has split {split[unknown][0]}; expected 0 "
            "(train) or 1 (test)"
        )
    return names, labels.astype(np.int64), tuple(_PARTS[int(part)] for part in split)


def _drawings(file: Path, arrays: Arrays, n: int) -> tuple[tuple[Source, ...], list[bytes]]:
    bits, shape = arrays["bits"], arrays["shape"]
    _check(file, "shape", shape, ndim=1, kinds="iu", what="integers")
    if len(shape) != 2 or (shape < 1).any():
        raise DataError(f"{file}: shape {shape.tolist()} is not a height and a width")
    height, width = (int(side) for side in shape)
    expected = (n, -(-height * width // 8))
    if bits.dtype != np.uint8 or bits.shape != expected:
        raise DataError(
            f"{file}: bits is {bits.dtype} {bits.shape}; {n} drawings of {height}x{width} need "
            f"uint8 {expected}"
        )
    ink = np.unpackbits(bits, axis=-1, count=height * width)  # (n, h * w), values 0 and 1
    pixels: Pixels = ink.reshape(n, height, width) * np.uint8(255)
    return tuple(pixels), [row.tobytes() for row in bits]


def _files(
    file: Path, arrays: Arrays, n: int, *, keep_bytes: int
) -> tuple[tuple[Source, ...], list[bytes]]:
    blob, offsets = arrays["blob"], arrays["offsets"]
    _check(file, "offsets", offsets, ndim=1, kinds="iu", what="integers")
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise DataError(f"{file}: blob is {blob.dtype} with {blob.ndim} axes; expected bytes")
    ends = offsets.astype(np.int64)
    if len(ends) != n + 1 or ends[0] < 0 or ends[-1] > len(blob) or (np.diff(ends) < 0).any():
        raise DataError(
            f"{file}: offsets must be {n + 1} rising positions in the {len(blob)} bytes of blob, "
            f"one more than there are labels; found {len(ends)} up to {ends.max(initial=0)}"
        )
    contents = [blob[start:end].tobytes() for start, end in zip(ends, ends[1:], strict=False)]
    pixels: list[Source] = []
    held = 0
    for i, content in enumerate(contents):
        picture = decoded(content, f"image {i} of {file}")
        held += picture.nbytes
        pixels.append(picture if held <= keep_bytes else content)
    return tuple(pixels if held <= keep_bytes else contents), contents


def _check(file: Path, key: str, array: NDArray[Any], *, ndim: int, kinds: str, what: str) -> None:
    if array.ndim != ndim or array.dtype.kind not in kinds:
        raise DataError(
            f"{file}: {key} is {array.dtype} with {array.ndim} axes; expected {what} with {ndim}"
        )
