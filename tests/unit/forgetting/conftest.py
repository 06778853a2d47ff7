"""Fixtures: a small image folder, and a small backbone trained on digits (takes a few seconds)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forgetting.data.augment import Augmentation
from forgetting.data.image_set import ImageSet
from forgetting.data.preprocess import Preprocess
from forgetting.data.sources import digits
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from forgetting.training.pretrain import PretrainConfig, Pretrained, pretrain, small_vit

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digit_images() -> ImageSet:
    return digits(seed=0)


MILD = Augmentation(rotation=4, scale=0.04, shift=0.03, contrast=0.06, brightness=0.03)
CONFIG = PretrainConfig(steps=400, batch=32, peak_rate=5e-3, augmentation=MILD)


def small_arguments(images: ImageSet) -> dict[str, Any]:
    """The small backbone's arguments for timm; `CONFIG` is how it is trained."""
    _, arguments, _ = small_vit(images)
    return {**arguments, **SMALL}


@pytest.fixture(scope="session")
def pretrained(digit_images: ImageSet) -> Pretrained:
    return pretrain(digit_images, model_args=small_arguments(digit_images), config=CONFIG, seed=0)


@pytest.fixture(scope="session")
def backbone(pretrained: Pretrained) -> Backbone:
    return pretrained.backbone


@pytest.fixture
def untrained() -> Callable[..., Backbone]:
    """Makes a tiny frozen backbone with random weights: (classes=, seed=, depth=) -> Backbone."""

    def make(*, classes: int = 4, seed: int = 0, depth: int = 3) -> Backbone:
        arguments = {
            "img_size": 8,
            "patch_size": 4,
            "embed_dim": 12,
            "depth": depth,
            "num_heads": 2,
        }
        preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
        names = tuple(f"class {i}" for i in range(classes))
        spec = BackboneSpec("vit_tiny_patch16_224", arguments, names, preprocess)
        torch.manual_seed(seed)
        return freeze(build_model(spec), spec)

    return make


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[dict[str, int]], Path]:
    """Writes PNG files: {class name: number of images} -> their folder."""

    def write(counts: dict[str, int]) -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / "images"
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, size=(10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
        return folder

    return write
