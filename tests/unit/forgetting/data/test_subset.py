from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from forgetting.data.image_set import ImageSet, image, indices
from forgetting.data.subset import limited, some_classes, without_classes
from forgetting.errors import DataError


def test_some_classes_are_numbered_in_the_order_given(digit_images: ImageSet) -> None:
    part = some_classes(digit_images, ["7", "2", "5"])
    assert part.classes == ("7", "2", "5")
    for label, name in enumerate(part.classes):
        own = indices(part, "test", classes=[name])
        whole = indices(digit_images, "test", classes=[name])
        assert set(part.labels[own]) == {label}
        assert len(own) == len(whole)
        for i, j in zip(own, whole, strict=True):
            assert np.array_equal(image(part, int(i)), image(digit_images, int(j)))


def test_without_classes_keeps_names_and_numbers(digit_images: ImageSet) -> None:
    part = without_classes(digit_images, ["3", "8"])
    assert part.classes == digit_images.classes
    assert set(part.labels) == set(range(10)) - {3, 8}
    gone = int(np.isin(digit_images.labels, [3, 8]).sum())
    assert len(part) == len(part.split) == len(part.labels) == len(digit_images) - gone
    assert len(indices(part, "train", classes=["3"])) == 0


def test_limited_touches_one_split_only(digit_images: ImageSet) -> None:
    part = limited(digit_images, 4, split="train", seed=1)
    train = indices(part, "train")
    assert Counter(part.labels[train].tolist()) == dict.fromkeys(range(10), 4)
    for other in ("val", "test"):
        assert len(indices(part, other)) == len(indices(digit_images, other))


def test_fewer_images_of_one_seed_are_part_of_more(digit_images: ImageSet) -> None:
    def kept(per_class: int, seed: int) -> set[bytes]:
        part = limited(digit_images, per_class, seed=seed)
        return {image(part, int(i)).tobytes() for i in indices(part, "train")}

    assert kept(2, 0) < kept(5, 0)
    assert not kept(5, 1) <= kept(5, 0)


def test_parts_have_digests_of_their_own(digit_images: ImageSet) -> None:
    def digests() -> list[str]:
        parts = [
            digit_images,
            some_classes(digit_images, ["1", "2"]),
            some_classes(digit_images, ["2", "1"]),
            without_classes(digit_images, ["3"]),
            limited(digit_images, 3),
            limited(digit_images, 3, seed=1),
        ]
        return [part.manifest_digest for part in parts]

    assert len(set(digests())) == 6
    assert digests() == digests()


@pytest.mark.parametrize("names", [["1"], ["1", "1"], []])
def test_too_few_classes_are_refused(digit_images: ImageSet, names: list[str]) -> None:
    with pytest.raises(DataError, match="at least 2 different classes of digits"):
        some_classes(digit_images, names)


def test_unknown_class_and_empty_rest_are_refused(digit_images: ImageSet) -> None:
    with pytest.raises(DataError, match="no class 'ten'"):
        some_classes(digit_images, ["1", "ten"])
    with pytest.raises(DataError, match="no class 'ten'"):
        without_classes(digit_images, ["ten"])
    with pytest.raises(DataError, match="without 10 classes digits has no images left"):
        without_classes(digit_images, digit_images.classes)


@pytest.mark.parametrize(("per_class", "split"), [(0, "train"), (3, "training")])
def test_senseless_limit_is_refused(digit_images: ImageSet, per_class: int, split: str) -> None:
    with pytest.raises(DataError, match="can't keep"):
        limited(digit_images, per_class, split=split)
