"""Images as tensors, each transformed once a process: all methods of a seed share them."""

from __future__ import annotations

import math

import torch

from forgetting.data.roles import Rows
from forgetting.data.sources import ImageSet, to_tensors
from forgetting.methods.protocol import Samples
from forgetting.models.backbone import Preprocess

# Larger sets are transformed anew at every use.
KEEP_BYTES = 4 * 2**30


class TensorMemo:
    """From positions in an image set to samples. What was transformed once is kept."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self._images, self._preprocess = images, preprocess
        keep = len(images) * math.prod(preprocess.input_size) * 4 <= KEEP_BYTES
        self._x = torch.empty(len(images) if keep else 0, *preprocess.input_size)
        self._known = torch.zeros(len(self._x), dtype=torch.bool)

    def __call__(self, rows: Rows) -> Samples:
        """Samples in the order of `rows`.

        Raises:
            DataError: An image can't be decoded.
        """
        if len(self._x) == 0:
            return Samples(*to_tensors(self._images, rows, self._preprocess))
        chosen = torch.from_numpy(rows)
        new = chosen[~self._known[chosen]]
        if len(new):
            self._x[new] = to_tensors(self._images, new.tolist(), self._preprocess)[0]
            self._known[new] = True
        return Samples(self._x[chosen], torch.from_numpy(self._images.labels[rows]))
