"""Where image sets come from: scikit-learn's digits, a folder of images, or a pack (`packs`)."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgetting.data.image_set import (
    KEEP_BYTES,
    SPLITS,
    ImageSet,
    Pixels,
    check_counts,
    content_of,
    decoded,
    digest_of,
    drawn_split,
)
from forgetting.data.packs import image_pack, pack_in
from forgetting.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
INDEX_FILE = "index.csv"


def open_image_set(source: str | Path, *, seed: int = 0) -> ImageSet:
    """Open an image set.

    Args:
        source: The word `digits`, the path of an image folder, or the path of a pack (its file,
            or a folder that holds nothing else).
        seed: Seed of the split.

    Raises:
        DataError: There is no image set at `source`, or it is damaged.
    """
    if source == "digits":
        return digits(seed=seed)
    path = Path(source)
    pack = pack_in(path)
    if pack is not None:
        return image_pack(pack, name=path.name if path.is_dir() else None, seed=seed)
    return image_folder(source, seed=seed)


def digits(*, seed: int = 0, test_share: float = 0.2, val_share: float = 0.15) -> ImageSet:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8, scaled to 0..255.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    scans = np.rint(raw.images * (255.0 / 16.0)).astype(np.uint8)  # (n, 8, 8), values 0..16
    labels = raw.target.astype(np.int64)
    split = drawn_split(labels, given=None, seed=seed, test_share=test_share, val_share=val_share)
    sources = tuple(scans)
    digest = digest_of(
        (scan.tobytes(), int(y), s) for scan, y, s in zip(scans, labels, split, strict=True)
    )
    names = tuple(str(d) for d in range(10))
    return ImageSet("digits", names, labels, split, sources, digest)


def image_folder(
    folder: str | Path, *, seed: int = 0, test_share: float = 0.2, val_share: float = 0.15
) -> ImageSet:
    """A folder with one sub-folder of images per class.

    A file `index.csv` in the folder fixes the split. It has the columns path, label, class and
    split (train, test or val). Without it the split is drawn class by class.

    Args:
        folder: Its path.
        seed: The same seed gives the same split.
        test_share: Share of each class's images held out for the report, if there is no index.
        val_share: Share of each class's remaining images held out for selection.

    Raises:
        DataError: No such folder, fewer than 2 classes, a class with too few images, an index
            that names missing files, or a file that isn't a whole image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"image folder {root} does not exist or is not a folder")
    index = root / INDEX_FILE
    rows = _read_index(index) if index.is_file() else _scan(root)
    names = tuple(dict.fromkeys(name for _, name, _ in rows))
    if len(names) < 2:
        raise DataError(
            f"{root}: expected at least 2 classes (one sub-folder each), found {len(names)}"
        )
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[name] for _, name, _ in rows], dtype=np.int64)
    given = [s for _, _, s in rows] if index.is_file() else None
    split = drawn_split(labels, given=given, seed=seed, test_share=test_share, val_share=val_share)
    check_counts(str(root), names, labels, split)
    paths = [root / path for path, _, _ in rows]
    sources, digest = _open_files(paths, labels, split)
    return ImageSet(root.name, names, labels, split, sources, digest)


def _scan(root: Path) -> list[tuple[str, str, str]]:
    rows = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"class {folder.name!r} in {root} has no images")
        rows += [(f"{folder.name}/{p.name}", folder.name, "") for p in files]
    return rows


def _read_index(path: Path) -> list[tuple[str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"path", "class", "split"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: columns missing: {', '.join(sorted(missing))}")
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table in UTF-8: {error}") from error
    rows = []
    for number, row in enumerate(table, start=2):
        if None in (row["path"], row["class"]):
            raise DataError(f"{path}, line {number}: it has fewer columns than the first line")
        if row["split"] not in SPLITS:
            raise DataError(f"{path}, line {number}: split {row['split']!r} is none of {SPLITS}")
        if Path(row["path"]).is_absolute() or ".." in Path(row["path"]).parts:
            raise DataError(f"{path}, line {number}: {row['path']!r} leads out of the folder")
        rows.append((row["path"], row["class"], row["split"]))
    return rows


def _open_files(
    paths: Sequence[Path], labels: NDArray[np.int64], split: Sequence[str]
) -> tuple[tuple[Pixels | Path, ...], str]:
    """Decode every file once, so that a broken one is found now. Keep the pixels if all fit."""
    sources: list[Pixels | Path] = []
    entries, held = [], 0
    for path, label, part in zip(paths, labels, split, strict=True):
        content = content_of(path)
        pixels = decoded(content, f"image {path}")
        held += pixels.nbytes
        sources.append(pixels if held <= KEEP_BYTES else path)
        entries.append((hashlib.sha256(content).digest(), int(label), part))
    if held > KEEP_BYTES:
        sources = list(paths)
    return tuple(sources), digest_of(entries)
