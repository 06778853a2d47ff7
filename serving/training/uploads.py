"""Adds images that came with a forget command to the data set. Runs in the trainer's process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from forgetting.data.image_set import ImageSet, Source, class_index


def with_uploads(images: ImageSet, uploads: Mapping[str, Sequence[bytes]]) -> ImageSet:
    """`images` plus `uploads` (class name -> image files).

    The added images are in the training split only: selection and the report use the data set's
    held-out images.

    Raises: `DataError` for a class that the set doesn't have.
    """
    added = [
        (class_index(images, name), data) for name in sorted(uploads) for data in uploads[name]
    ]
    if not added:
        return images
    digest = hashlib.sha256(images.manifest_digest.encode())
    for label, data in added:
        digest.update(f"|{label}|{hashlib.sha256(data).hexdigest()}".encode())
    sources: list[Source] = [data for _, data in added]
    return replace(
        images,
        labels=np.append(images.labels, [label for label, _ in added]).astype(np.int64),
        split=(*images.split, *("train" for _ in added)),
        sources=(*images.sources, *sources),
        manifest_digest=f"sha256:{digest.hexdigest()}",
    )
