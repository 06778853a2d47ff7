from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.sources import image_folder
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.models.backbone import load_backbone, save_backbone
from forgetting.training.pretrain import (
    PretrainConfig,
    Pretrained,
    PretrainProgress,
    pretrain,
    small_vit,
)

FEW = PretrainConfig(steps=3, batch=8)
TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


def test_pretraining_learns_and_reports_accuracy_on_held_out_images(
    pretrained: Pretrained, digit_images: ImageSet, tmp_path: Path
) -> None:
    assert pretrained.test.value > 0.7
    assert pretrained.test.n == len(indices(digit_images, "test"))
    save_backbone(tmp_path, pretrained.backbone)
    again = load_backbone(tmp_path)
    x, y = to_tensors(digit_images, indices(digit_images, "test"), again.spec.preprocess)
    assert share_right(again.model, x, y) == pretrained.test


def test_same_seed_gives_the_same_weights(digit_images: ImageSet) -> None:
    runs = [pretrain(digit_images, model_args=TINY, config=FEW, seed=s) for s in (1, 1, 2)]
    first, again, other = (run.backbone.fingerprint for run in runs)
    assert first == again
    assert first != other


def test_progress_ends_at_the_last_step_and_can_cancel(digit_images: ImageSet) -> None:
    seen: list[PretrainProgress] = []
    pretrain(digit_images, model_args=TINY, config=FEW, progress=seen.append)
    assert seen[-1].step == seen[-1].steps == 3

    def cancel(progress: PretrainProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(digit_images, model_args=TINY, config=FEW, progress=cancel)


def test_broken_loss_is_an_error(digit_images: ImageSet) -> None:
    with pytest.raises(TrainingError, match="broke down at step"):
        pretrain(digit_images, model_args=TINY, config=replace(FEW, steps=20, peak_rate=1e30))


def test_colour_folder_gets_a_colour_model(write_folder: Callable[..., Path]) -> None:
    images = image_folder(write_folder({"a": 4, "b": 4}))
    model, arguments, preprocess = small_vit(images)
    assert preprocess.input_size == (3, 16, 16)
    run = pretrain(images, model=model, model_args=TINY, config=FEW)
    assert run.backbone.spec.classes == ("a", "b")
    assert run.backbone.spec.preprocess.input_size == (3, 8, 8)
    assert run.backbone.spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert arguments["img_size"] == 16


def test_clipped_gradients_and_no_dropout_change_what_is_learned(digit_images: ImageSet) -> None:
    _, arguments, _ = small_vit(digit_images)
    small = {**arguments, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.3}
    config = PretrainConfig(steps=3, batch=8)
    weights = [
        pretrain(digit_images, model_args=small, config=changed, seed=0).backbone.fingerprint
        for changed in (config, replace(config, dropout=False), replace(config, clip=1e-3))
    ]
    assert len(set(weights)) == 3
