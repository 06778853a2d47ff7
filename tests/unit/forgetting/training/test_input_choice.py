from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forgetting.data.headers import Header, headers
from forgetting.data.image_set import ImageSet, image, indices
from forgetting.data.sources import image_folder
from forgetting.errors import DataError
from forgetting.training.input_choice import choose_input
from forgetting.training.pretrain import PretrainConfig, pretrain, small_vit

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


def folder_of(root: Path, classes: dict[str, list[tuple[int, str]]]) -> ImageSet:
    """{class: (longer side, Pillow mode) of each image}, as PNG files."""
    rng = np.random.default_rng(0)
    for name, kinds in classes.items():
        (root / name).mkdir(parents=True)
        for i, (side, mode) in enumerate(kinds):
            noise = rng.integers(0, 256, size=(side // 2, side, 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(root / name / f"{i:02}.png")
    return image_folder(root)


def test_first_class_of_small_files_does_not_shrink_the_input(tmp_path: Path) -> None:
    classes = {"a": [(20, "L")] * 30, "b": [(64, "L")] * 40, "c": [(64, "L")] * 40}
    images = folder_of(tmp_path / "set", classes)
    assert {max(image(images, int(i)).size) for i in indices(images, "train")[:16]} == {20}
    choice = choose_input(images)
    assert (choice.side, choice.patch, choice.channels) == (48, 8, 1)
    assert choice.why == (
        "48x48 pixels, grey: 64 of 88 images are not smaller than 32 pixels, 24 smaller; "
        "all are grey"
    )


def test_first_class_of_grey_files_does_not_take_the_colour(tmp_path: Path) -> None:
    classes = {"a": [(20, "L")] * 30, "b": [(20, "RGB")] * 10}
    images = folder_of(tmp_path / "set", classes)
    choice = choose_input(images)
    assert (choice.side, choice.channels) == (16, 3)
    assert choice.why == (
        "16x16 pixels, colour: all 32 images are smaller than 32 pixels; 8 are in colour, 24 grey"
    )
    assert small_vit(images)[2].input_size == (3, 16, 16)


def test_one_large_file_in_twenty_does_not_enlarge_the_input_but_more_do(tmp_path: Path) -> None:
    few = {"a": [(20, "L")] * 40, "b": [(20, "L")] * 38 + [(64, "L")] * 2}
    assert choose_input(folder_of(tmp_path / "few", few)).side == 16
    more = {"a": [(20, "L")] * 40, "b": [(20, "L")] * 30 + [(64, "L")] * 10}
    assert choose_input(folder_of(tmp_path / "more", more)).side == 48


def test_test_images_have_no_say(tmp_path: Path) -> None:
    root = tmp_path / "set"
    folder_of(root, {"a": [(20, "L")] * 4, "b": [(20, "L")] * 3 + [(64, "RGB")]})
    parts = [("a", 0, "train"), ("a", 1, "train"), ("a", 2, "test"), ("a", 3, "test")]
    parts += [("b", 0, "train"), ("b", 1, "train"), ("b", 2, "test"), ("b", 3, "test")]
    lines = [f"{name}/{i:02}.png,0,{name},{part}" for name, i, part in parts]
    (root / "index.csv").write_text("\n".join(["path,label,class,split", *lines]))
    choice = choose_input(image_folder(root))
    assert (choice.side, choice.channels) == (16, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_header_tells_what_decoding_gives(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "image.png"
    pixels = np.arange(30 * 20, dtype=np.uint16).reshape(20, 30)
    picture = (
        Image.fromarray(pixels)
        if mode == "I;16"
        else Image.fromarray((pixels % 255).astype(np.uint8))
    )
    picture = picture if mode == "I;16" else picture.convert("L").convert(mode)
    picture.save(file)
    for source in (file, file.read_bytes()):
        held = ImageSet("one", ("a",), np.zeros(1, np.int64), ("train",), (source,), "")
        whole = image(held, 0)
        assert headers(held, [0]) == [Header(whole.width, whole.height, whole.mode == "L")]


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(b"nothing")
    held = ImageSet("one", ("a",), np.zeros(1, np.int64), ("train",), (file,), "")
    with pytest.raises(DataError, match="broken.png can't be decoded"):
        headers(held, [0])


def test_result_says_what_was_chosen_and_warns_of_a_poor_accuracy(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "set", {"a": [(20, "L")] * 20, "b": [(20, "L")] * 20})
    run = pretrain(images, config=PretrainConfig(steps=1, batch=4))
    assert run.chosen == choose_input(images).why
    assert run.test.value < 0.8  # noise of two classes
    assert run.warning is not None
    assert run.warning.startswith(f"the held-out accuracy, {run.test.value:.1%}, is below 80%")
    asked = pretrain(images, model_args=TINY, config=PretrainConfig(steps=1, batch=4))
    assert asked.chosen == "8x8 pixels, grey: as its caller says"
