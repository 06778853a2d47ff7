from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from forgetting.attacks.relearn import RelearnConfig, relearn
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.accuracy import share_right
from forgetting.methods.head_mask import mask
from forgetting.models.backbone import Backbone

GONE = torch.tensor([3, 7])


@pytest.fixture(scope="module")
def train_images(digit_images: ImageSet, backbone: Backbone) -> Samples:
    rows = indices(digit_images, "train")[:300]
    return Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))


@pytest.fixture(scope="module")
def test_images(digit_images: ImageSet, backbone: Backbone) -> Samples:
    rows = indices(digit_images, "test")
    return Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))


def curve(
    model: torch.nn.Module, train: Samples, test: Samples, *, config: RelearnConfig
) -> tuple[tuple[int, ...], tuple[float, ...], int | None]:
    gone = torch.isin(test.y, GONE)
    found = relearn(
        model,
        train=train,
        test=test,
        forgotten=GONE,
        before=share_right(model, test.x[gone], test.y[gone]).value or 0.9,
        generator=torch.Generator().manual_seed(0),
        config=config,
    )
    return found.steps, found.acc_f, found.reached


def test_backbone_needs_no_step(
    backbone: Backbone, train_images: Samples, test_images: Samples
) -> None:
    found = curve(backbone.model, train_images, test_images, config=RelearnConfig())
    assert found[0] == (0,)
    assert found[2] == 0


def test_mask_is_gone_within_a_few_steps_and_the_model_stays(
    backbone: Backbone, train_images: Samples, test_images: Samples
) -> None:
    model: Any = copy.deepcopy(backbone.model)
    mask(model, GONE)
    before = model(test_images.x)
    steps, acc_f, reached = curve(model, train_images, test_images, config=RelearnConfig())
    assert acc_f[0] < 0.5
    assert reached is not None
    assert 0 < reached <= 20
    assert steps[-1] == reached
    assert torch.equal(model(test_images.x), before)


def test_cap_is_told_from_success(
    backbone: Backbone, train_images: Samples, test_images: Samples
) -> None:
    model = copy.deepcopy(backbone.model)
    mask(model, GONE)
    config = RelearnConfig(rate=1e-9, head_rate=1e-9, looks=(0, 2, 3))
    steps, _, reached = curve(model, train_images, test_images, config=config)
    assert steps == (0, 2, 3)
    assert reached is None


def test_images_of_both_kinds_are_needed(backbone: Backbone, test_images: Samples) -> None:
    gone = torch.isin(test_images.y, GONE)
    only = Samples(test_images.x[gone], test_images.y[gone])
    with pytest.raises(DataError, match="found 7[0-9], 0, 7[0-9]"):
        curve(backbone.model, only, test_images, config=RelearnConfig())
