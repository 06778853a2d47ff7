"""A small version of the papers' backbone is pre-trained with the margin and then forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forgetting.adapter.stack import adapted_model
from forgetting.data.augment import Augmentation
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.preprocess import Preprocess
from forgetting.data.sources import digits
from forgetting.measure.accuracy import margin_right, right
from forgetting.models.backbone import features_and_logits
from forgetting.models.face_transformer import NAME
from forgetting.task.run import run_task
from forgetting.training.pretrain import PretrainConfig, Pretrained, pretrain

SMALL: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": 2.0,
    "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    torch.set_num_threads(1)
    return digits(seed=0)


@pytest.fixture(scope="module")
def pretrained(images: ImageSet) -> Pretrained:
    mild = Augmentation(rotation=4, scale=0.04, shift=0.03, contrast=0.06, brightness=0.03)
    return pretrain(
        images,
        model=NAME,
        model_args=SMALL,
        preprocess=Preprocess((1, 16, 16), mean=(0.0,), std=(1.0,), crop_mode="squash"),
        config=PretrainConfig(steps=200, batch=48, peak_rate=5e-3, augmentation=mild),
    )


def test_accuracy_with_the_margin_is_below_the_plain_one(
    pretrained: Pretrained, images: ImageSet
) -> None:
    backbone = pretrained.backbone
    x, y = to_tensors(images, indices(images, "test"), backbone.spec.preprocess)
    with torch.no_grad():
        embedding, logits = features_and_logits(backbone.model, x)
    model: Any = backbone.model
    plain = right(logits, y)
    assert plain == pretrained.test
    assert plain.value > 0.8
    assert 0.5 < margin_right(model.get_classifier(), embedding, y).value < plain.value


def test_a_class_is_forgotten_below_a_cosine_head(pretrained: Pretrained, images: ImageSet) -> None:
    result = run_task(
        pretrained.backbone,
        (),
        images=images,
        forget=["3"],
        earlier=[],
        subjects={"3": "s1"},
        stack_ids=[],
        seed=0,
    )
    assert result.passed, result.gates
    assert result.report.acc_f_before.value > 0.7
    assert result.report.acc_f_after.hits <= 1
    adapted: Any = adapted_model(pretrained.backbone, (result.adapter,))
    head: Any = adapted.get_classifier()
    bare: Any = pretrained.backbone.model
    assert torch.equal(head.weight, bare.get_classifier().weight)
