from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forgetting.data.image_set import (
    ImageSet,
    image,
    indices,
)
from forgetting.data.preprocess import Preprocess, transform
from forgetting.data.sources import digits, image_folder, open_image_set
from forgetting.errors import DataError

Write = Callable[[dict[str, int]], Path]
GREY = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def test_digits_are_the_original_scans_over_the_whole_range(digit_images: ImageSet) -> None:
    from sklearn.datasets import load_digits

    pixels = np.stack([np.asarray(image(digit_images, i)) for i in range(50)])
    assert pixels.dtype == np.uint8
    assert pixels.max() == 255
    assert np.array_equal(np.rint(pixels / 255 * 16), load_digits().images[:50])


def test_every_class_is_in_every_split_in_the_same_proportion(digit_images: ImageSet) -> None:
    for name in digit_images.classes:
        sizes = [len(indices(digit_images, s, classes=[name])) for s in ("train", "val", "test")]
        assert sizes[2] == round(sum(sizes) * 0.2)
        assert sizes[1] == round((sizes[0] + sizes[1]) * 0.15)


def test_split_depends_on_the_seed_alone() -> None:
    assert digits(seed=1).split == digits(seed=1).split
    assert digits(seed=1).split != digits(seed=2).split
    assert digits(seed=1).manifest_digest != digits(seed=2).manifest_digest


def test_folder_has_one_class_for_each_sub_folder(write_folder: Write) -> None:
    folder = write_folder({"b": 5, "a": 5, ".hidden": 1})
    images = image_folder(folder)
    assert images.classes == ("a", "b")
    assert Counter(images.split) == {"test": 2, "val": 2, "train": 6}
    assert image(images, 0).mode == "RGB"


def test_index_decides_what_is_test(write_folder: Write) -> None:
    folder = write_folder({"a": 4, "b": 4})
    rows = ["path,label,class,split"]
    for label, name in enumerate("ab"):
        for i in range(4):
            rows.append(f"{name}/0{i}.png,{label},{name},{'test' if i == 3 else 'train'}")
    (folder / "index.csv").write_text("\n".join(rows))
    images = image_folder(folder, seed=3)
    test = indices(images, "test")
    assert [images.split[i] for i in (3, 7)] == ["test", "test"]
    assert len(test) == 2
    assert len(indices(images, "val", classes=["a"])) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/00.png,0,a,maybe", "line 2: split 'maybe'"),
        ("../00.png,0,a,train", "line 2: .* leads out of the folder"),
    ],
)
def test_faulty_index_line_is_named(write_folder: Write, line: str, message: str) -> None:
    folder = write_folder({"a": 2, "b": 2})
    (folder / "index.csv").write_text(f"path,label,class,split\n{line}\n")
    with pytest.raises(DataError, match=message):
        image_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,class,split\na/0.png,\xff,train\n", "can't be read as a table in UTF-8"),
        (b"split,class,path\ntrain,a\n", "line 2: it has fewer columns"),
    ],
)
def test_index_that_is_no_table_is_named(write_folder: Write, content: bytes, message: str) -> None:
    folder = write_folder({"a": 3, "b": 3})
    (folder / "index.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"index.csv.*{message}"):
        image_folder(folder)


def test_index_that_names_a_missing_file_is_refused(write_folder: Write) -> None:
    folder = write_folder({"a": 2, "b": 2})
    rows = [f"{n}/0{i}.png,0,{n},{s}" for n in "ab" for i, s in ((0, "train"), (9, "test"))]
    (folder / "index.csv").write_text("path,label,class,split\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"a/09\.png can't be read"):
        image_folder(folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_image_set(tmp_path / "nowhere")


def test_single_class_is_refused(write_folder: Write) -> None:
    with pytest.raises(DataError, match="at least 2 classes .* found 1"):
        image_folder(write_folder({"a": 5}))


def test_class_without_images_is_named(write_folder: Write) -> None:
    with pytest.raises(DataError, match="class 'empty' .* has no images"):
        image_folder(write_folder({"a": 5, "empty": 0}))


def test_class_with_one_image_is_named(write_folder: Write) -> None:
    with pytest.raises(DataError, match="class 'lonely' .* has 1 image"):
        image_folder(write_folder({"a": 5, "lonely": 1}))


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_corrupt_file_is_named(write_folder: Write, content: bytes | None) -> None:
    folder = write_folder({"a": 5, "b": 5})
    path = folder / "b" / "03.png"
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(DataError, match=r"b/03\.png can't be decoded"):
        image_folder(folder)


def test_digest_changes_with_one_byte_of_one_image(write_folder: Write) -> None:
    folder = write_folder({"a": 5, "b": 5})
    before = image_folder(folder).manifest_digest
    Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(folder / "a" / "00.png")
    assert image_folder(folder).manifest_digest != before


def test_an_image_of_16_bits_is_the_one_of_its_upper_8(write_folder: Write) -> None:
    folder = write_folder({"a": 3, "b": 3})
    shades = np.arange(64, dtype=np.uint16).reshape(8, 8)
    deep, plain = Image.fromarray(shades * 1000), Image.fromarray((shades * 1000 >> 8).astype("u1"))
    assert torch.equal(transform(GREY)(deep), transform(GREY)(plain))
    deep.save(folder / "a" / "deep.png")
    images = image_folder(folder)
    found = [image(images, i) for i in range(len(images))]
    assert sum(picture.tobytes() == plain.tobytes() for picture in found) == 1
