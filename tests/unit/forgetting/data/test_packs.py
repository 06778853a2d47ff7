from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from forgetting.data.image_set import ImageSet, image, indices, to_tensors
from forgetting.data.packs import image_pack
from forgetting.data.sources import open_image_set
from forgetting.errors import DataError
from forgetting.training.pretrain import small_vit

Arrays = dict[str, NDArray[Any]]
N = 24  # 3 classes of 8 images, the last 2 of each class for the test


def facts() -> Arrays:
    within = np.tile(np.arange(8), 3)
    return {
        "labels": np.repeat(np.arange(3), 8).astype(np.int16),
        "split": (within >= 6).astype(np.uint8),
        "classes": np.array(["one", "two/2", "drei"]),
    }


def drawings() -> tuple[Arrays, NDArray[np.uint8]]:
    ink = np.random.default_rng(0).integers(0, 2, size=(N, 5, 7), dtype=np.uint8)
    bits = np.packbits(ink.reshape(N, -1), axis=-1)
    return {**facts(), "bits": bits, "shape": np.array([5, 7])}, ink


def photos(*, count: int = N) -> Arrays:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, size=(8, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, format="JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *(len(f) for f in files)])
    blob = np.frombuffer(b"".join(files), dtype=np.uint8)
    return {**facts(), "blob": blob, "offsets": offsets}


def written(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path, allow_pickle=True, **arrays)  # type: ignore[arg-type]
    return path


def test_drawings_come_out_as_white_ink_on_black(tmp_path: Path) -> None:
    arrays, ink = drawings()
    images = open_image_set(written(tmp_path / "letters.npz", arrays))
    assert images.name == "letters"
    assert images.classes == ("one", "two/2", "drei")
    pixels = np.stack([np.asarray(image(images, i)) for i in range(N)])
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, ink * 255)


def test_photos_are_the_decoded_files(tmp_path: Path) -> None:
    arrays = photos()
    images = image_pack(written(tmp_path / "pack.npz", arrays))
    start, end = arrays["offsets"][5:7]
    with Image.open(io.BytesIO(arrays["blob"][start:end].tobytes())) as expected:
        assert np.array_equal(np.asarray(image(images, 5)), np.asarray(expected.convert("RGB")))


def test_photos_that_do_not_fit_stay_encoded_and_look_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "pack.npz", photos())
    kept, encoded = image_pack(path), image_pack(path, keep_bytes=200)
    assert isinstance(encoded.sources[0], bytes)
    assert encoded.manifest_digest == kept.manifest_digest
    for i in range(N):
        assert np.array_equal(np.asarray(image(kept, i)), np.asarray(image(encoded, i)))


def test_the_pack_says_what_is_test_and_the_seed_what_is_validation(tmp_path: Path) -> None:
    path = written(tmp_path / "pack.npz", drawings()[0])
    images = image_pack(path, seed=1, val_share=0.34)
    assert indices(images, "test").tolist() == [6, 7, 14, 15, 22, 23]
    for name in images.classes:
        assert len(indices(images, "val", classes=[name])) == 2
    assert image_pack(path, seed=1, val_share=0.34).split == images.split
    assert image_pack(path, seed=2, val_share=0.34).split != images.split


def test_folder_that_holds_one_pack_is_that_pack(tmp_path: Path) -> None:
    path = written(tmp_path / "pack.npz", drawings()[0])
    (tmp_path / "README.md").write_text("where it is from")
    images = open_image_set(tmp_path)
    assert images.manifest_digest == image_pack(path).manifest_digest
    assert images.name == tmp_path.name


def test_folder_with_two_packs_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        written(tmp_path / name, drawings()[0])
    with pytest.raises(DataError, match=r"2 packs \(a\.npz, b\.npz\); name one"):
        open_image_set(tmp_path)


def test_digest_changes_with_one_pixel_and_with_one_label(tmp_path: Path) -> None:
    arrays, _ = drawings()
    digests = [image_pack(written(tmp_path / "0.npz", arrays)).manifest_digest]
    arrays["bits"][3, 0] ^= 128
    digests.append(image_pack(written(tmp_path / "1.npz", arrays)).manifest_digest)
    arrays["labels"][0] = 1
    digests.append(image_pack(written(tmp_path / "2.npz", arrays)).manifest_digest)
    assert len(set(digests)) == 3


def changed(key: str, value: Any) -> Arrays:
    base = photos() if key in ("blob", "offsets") else drawings()[0]
    return {**base, key: np.asarray(value)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", np.full(N, 3), "image 0 has label 3, but there are 3 class names"),
        ("labels", np.zeros(N), "labels is float64 .* expected integers"),
        ("labels", np.zeros(5, dtype=int), "5 labels but 24 entries in split"),
        ("split", np.full(N, 2), r"image 0 has split 2; expected 0 \(train\) or 1"),
        ("split", np.zeros(N, dtype=int), "class 'one' .* has no test image"),
        ("classes", ["a", "a", "b"], "different class names"),
        ("classes", [1, 2, 3], "classes is int64 .* expected text"),
        ("classes", np.array([{"a": 1}] * 3), "not a whole .npz file of plain arrays"),
        ("shape", [5], r"shape \[5\] is not a height and a width"),
        ("shape", [9, 9], r"24 drawings of 9x9 need uint8 \(24, 11\)"),
        ("bits", np.zeros((N, 5), dtype=np.float32), "bits is float32"),
        ("offsets", np.arange(N), "offsets must be 25 rising positions"),
        ("offsets", np.arange(N + 1)[::-1].copy(), "offsets must be 25 rising positions"),
        ("offsets", np.arange(N + 1) * 10**6, "offsets must be 25 rising positions"),
        ("offsets", np.zeros(N + 1, dtype=int), "image 0 of .*pack.npz can't be decoded"),
        ("blob", np.zeros((2, 2), dtype=np.uint8), "blob is uint8 with 2 axes"),
    ],
)
def test_array_that_does_not_fit_is_named(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = written(tmp_path / "pack.npz", changed(key, value))
    with pytest.raises(DataError, match=message):
        image_pack(path)


def test_npz_of_another_kind_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "pack.npz", {"weights": np.zeros(3), **facts()})
    with pytest.raises(DataError, match=r"no pack of images: expected .*bits.* found .*weights"):
        open_image_set(path)


def test_pack_without_labels_is_refused(tmp_path: Path) -> None:
    arrays, _ = drawings()
    del arrays["labels"]
    with pytest.raises(DataError, match="expected classes, labels, split and"):
        image_pack(written(tmp_path / "pack.npz", arrays))


@pytest.mark.parametrize("keep", [0, 30, 0.5, 0.95])
def test_truncated_pack_is_refused(tmp_path: Path, keep: float) -> None:
    path = written(tmp_path / "pack.npz", drawings()[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError, match="not a whole .npz file"):
        image_pack(path)


def test_damaged_byte_in_the_images_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "pack.npz"
    np.savez(path, **drawings()[0])  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    position = content.index(drawings()[0]["bits"].tobytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a whole .npz file"):
        image_pack(path)


def test_single_array_is_no_pack(tmp_path: Path) -> None:
    path = tmp_path / "pack.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="holds a single array"):
        image_pack(path)


def test_pickle_is_not_opened(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "pack.npz"
    path.write_bytes(pickle.dumps({"labels": [1]}))
    with pytest.raises(DataError, match="not a whole .npz file"):
        image_pack(path)


def real(data_root: Path, name: str) -> ImageSet:
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} at {data_root}; set LETHE_DATA")
    return open_image_set(data_root / name)


def test_omniglot_has_242_characters_by_20_drawers(data_root: Path) -> None:
    images = real(data_root, "omniglot_small")
    assert len(images.classes) == 242
    assert images.name == "omniglot_small"
    assert Counter(images.split) == {"test": 242 * 5, "val": 242 * 2, "train": 242 * 13}
    _, _, preprocess = small_vit(images)
    x, y = to_tensors(images, indices(images, "test")[:20], preprocess)
    assert x.shape == (20, 1, 48, 48)
    assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    drawn = np.asarray(image(images, 0))
    assert drawn.shape == (105, 105)
    assert set(np.unique(drawn)) == {0, 255}
    assert 0.01 < (drawn == 255).mean() < 0.2  # a thin line of white ink


def test_cifar_has_ten_classes_of_colour_photos(data_root: Path) -> None:
    images = real(data_root, "cifar10")
    assert len(images.classes) == 10
    assert Counter(images.split) == {"test": 3000, "val": 2250, "train": 12750}
    assert image(images, 17_999).size == (32, 32)
    assert image(images, 17_999).mode == "RGB"
