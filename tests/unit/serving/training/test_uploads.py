"""Images that came with a command are trained on, but never measured on."""

from __future__ import annotations

import numpy as np
import pytest

from forgetting.data.image_set import ImageSet, image, indices, png_bytes
from forgetting.data.sources import digits
from forgetting.errors import DataError
from serving.training.uploads import with_uploads


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return digits(seed=0)


def test_uploads_are_more_images_to_learn_from_and_nothing_else(images: ImageSet) -> None:
    scans = [png_bytes(image(images, i)) for i in (0, 1)]
    more = with_uploads(images, {"7": scans})
    assert len(more) == len(images) + 2
    added = set(indices(more, "train", classes=["7"])) - set(indices(images, "train"))
    assert added == {len(images), len(images) + 1}
    for part in ("val", "test"):
        assert np.array_equal(indices(more, part), indices(images, part))
    assert np.array_equal(np.asarray(image(more, len(images))), np.asarray(image(images, 0)))
    # The report names the digest of the data, which must differ.
    assert more.manifest_digest != images.manifest_digest
    assert with_uploads(images, {"7": scans}).manifest_digest == more.manifest_digest
    assert with_uploads(images, {"8": scans}).manifest_digest != more.manifest_digest


def test_without_uploads_the_set_is_the_same(images: ImageSet) -> None:
    assert with_uploads(images, {}) is images
    assert with_uploads(images, {"7": ()}) is images


def test_a_class_that_the_set_lacks_is_refused(images: ImageSet) -> None:
    with pytest.raises(DataError, match="no class 'eleven'"):
        with_uploads(images, {"eleven": [b"x"]})
