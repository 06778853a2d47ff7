"""Forgets identities of the ORL faces, with six portraits to train on and one for selection."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forgetting.data.image_set import ImageSet
from forgetting.data.sources import image_folder
from forgetting.task.run import run_task
from forgetting.training.pretrain import PretrainConfig, Pretrained, pretrain

# tests/e2e/test_faces.py does a short version through the server.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(data_root: Path) -> ImageSet:
    folder = data_root / "faces_orl40"
    if not folder.is_dir():
        pytest.skip(f"no faces at {folder}; set LETHE_DATA")
    return image_folder(folder)


@pytest.fixture(scope="module")
def pretrained(images: ImageSet) -> Pretrained:
    torch.set_num_threads(1)
    return pretrain(images, config=PretrainConfig(steps=600), seed=0)


def test_backbone_reaches_85_percent_on_held_out_portraits(pretrained: Pretrained) -> None:
    assert pretrained.test.n == 120
    assert pretrained.test.value >= 0.85


@pytest.mark.parametrize("forget", [["s07"], ["s01", "s12", "s23", "s31", "s40"]])
def test_identities_are_forgotten_and_the_others_stay(
    images: ImageSet, pretrained: Pretrained, forget: list[str]
) -> None:
    result = run_task(
        pretrained.backbone,
        [],
        images=images,
        forget=forget,
        earlier=[],
        subjects={name: f"subject-{i}" for i, name in enumerate(forget)},
        stack_ids=[],
    )
    report = result.report
    assert report.acc_f_before.value > 0.8
    assert report.acc_f_after.hits == 0
    # 3 portraits of each: an error of two of the retained ones is the smallest useful limit.
    assert report.acc_r_before.hits - report.acc_r_after.hits <= 2
    assert report.groups_kept <= 4
