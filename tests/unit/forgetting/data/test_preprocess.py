"""Pre-processing is timm's, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from forgetting.data.preprocess import Preprocess, transform


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("size", [(16, 16), (40, 30), (33, 90), (32, 32), (32, 24)])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((1, 16, 16), (0.3,), (0.7,)),
        Preprocess((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=0.9),
        Preprocess((3, 24, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "squash"),
        Preprocess((3, 32, 32), (0.1, 0.2, 0.3), (1.0, 0.9, 0.8), "nearest", 0.8, "border"),
        Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "border"),
        Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.99, "center"),
    ],
    ids=["grey", "imagenet", "squash", "border", "whole", "nearly whole"],
)
def test_an_image_becomes_what_timm_makes_of_it(
    mode: str, size: tuple[int, int], preprocess: Preprocess
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(noise, "RGBA").convert(mode)
    expected = timm.data.create_transform(
        input_size=preprocess.input_size,
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )(image.convert("L" if preprocess.input_size[0] == 1 else "RGB"))
    found = transform(preprocess)(image)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, expected)
