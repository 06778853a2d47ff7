"""A backbone and images small enough to train and serve in a test, and servers of one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forgetting.data.augment import Augmentation
from forgetting.data.sources import image_folder
from forgetting.models.backbone import save_backbone
from forgetting.training.pretrain import PretrainConfig, pretrain
from tests.unit.serving.small_server import CLASSES, SmallServer, settings_for

ARCHITECTURE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images/`, four classes of twelve images, told apart by which stripe is bright,
    and their `backbone/`."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for i, name in enumerate(CLASSES):
        (root / "images" / name).mkdir(parents=True)
        for j in range(12):
            pixels = rng.integers(0, 60, size=(16, 16), dtype=np.uint8)
            pixels[4 * i : 4 * i + 4] += 150
            Image.fromarray(pixels).save(root / "images" / name / f"{j}.png")
    images = image_folder(root / "images")
    still = Augmentation(rotation=0, scale=0, shift=0, contrast=0, brightness=0)
    config = PretrainConfig(steps=150, batch=24, peak_rate=5e-3, augmentation=still)
    made = pretrain(images, model_args=ARCHITECTURE, config=config)
    save_backbone(root / "backbone", made.backbone)
    return root


@pytest.fixture
def small_server(tiny: Path, tmp_path: Path) -> Iterator[Callable[..., SmallServer]]:
    """Makes servers on one home, with `settings_for`'s changes; they end with the test."""
    made: list[SmallServer] = []
    interval = sys.getswitchinterval()

    def make(**changes: Any) -> SmallServer:
        made.append(SmallServer(settings_for(tiny, tmp_path / "home", **changes)))
        return made[-1]

    yield make
    for server in made:
        server.close()
    sys.setswitchinterval(interval)
