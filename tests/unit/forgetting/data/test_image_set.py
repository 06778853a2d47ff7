from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from forgetting.data.image_set import (
    ImageSet,
    for_classes,
    image,
    indices,
    png_bytes,
    replay,
    to_tensors,
)
from forgetting.data.preprocess import Preprocess, transform
from forgetting.data.sources import image_folder
from forgetting.errors import DataError

Write = Callable[[dict[str, int]], Path]
GREY = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def test_tensors_are_what_serving_makes_of_the_png(digit_images: ImageSet) -> None:
    rows = indices(digit_images, "test")[:5]
    x, y = to_tensors(digit_images, rows, GREY)
    assert x.shape == (5, 1, 8, 8)
    for row, i in enumerate(rows):
        sent = Image.open(io.BytesIO(png_bytes(image(digit_images, int(i)))))
        assert torch.equal(x[row], transform(GREY)(sent))
        assert int(y[row]) == digit_images.labels[i]


def test_replay_draws_each_class_from_the_training_images(digit_images: ImageSet) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = replay(digit_images, per_class=5, generator=generator, classes=["1", "7"])
    assert Counter(digit_images.labels[rows].tolist()) == {1: 5, 7: 5}
    assert {digit_images.split[i] for i in rows} == {"train"}
    assert len(set(rows.tolist())) == 10


def test_labels_follow_the_backbones_class_names(write_folder: Write) -> None:
    images = image_folder(write_folder({"a": 3, "b": 3}))
    moved = for_classes(images, ["x", "b", "a"])
    assert moved.classes == ("x", "b", "a")
    assert set(moved.labels[:3]) == {2}
    assert set(moved.labels[3:]) == {1}


def test_classes_that_the_backbone_does_not_know_are_named(digit_images: ImageSet) -> None:
    with pytest.raises(DataError, match="2 classes that the backbone doesn't know: 8, 9"):
        for_classes(digit_images, [str(i) for i in range(8)])


def test_unknown_class_is_named(digit_images: ImageSet) -> None:
    with pytest.raises(DataError, match="no class 'ten'"):
        indices(digit_images, "train", classes=["ten"])
