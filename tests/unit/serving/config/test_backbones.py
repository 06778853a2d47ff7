"""The backbone that the settings name is the one that is opened."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from forgetting.errors import BackboneError
from forgetting.training.pretrain import PretrainConfig, pretrain
from serving.config import backbones
from serving.config.backbones import embedded_folder, open_backbone, prepare_backbone
from serving.config.settings import Settings
from serving.config.sources import load_settings

MODEL = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 32, "patch_size": 8, "depth": 2}


@pytest.fixture
def named(tmp_path: Path) -> Settings:
    """Settings that name a timm ViT with local weights and a labels file."""
    torch.manual_seed(3)
    model = timm.create_model(MODEL, num_classes=4, **ARGUMENTS)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "labels.txt").write_text("ada\nbo\ncy\ndee\n")
    return load_settings(
        home=tmp_path,
        images=str(tmp_path / "images"),
        backbone={
            "model": MODEL,
            "model_args": ARGUMENTS,
            "weights": tmp_path / "weights.safetensors",
            "labels": tmp_path / "labels.txt",
        },
    )


def test_a_timm_vit_is_loaded_by_name_with_local_weights_and_labels(named: Settings) -> None:
    backbone = open_backbone(named)
    assert backbone.spec.classes == ("ada", "bo", "cy", "dee")
    torch.manual_seed(3)
    same = timm.create_model(MODEL, num_classes=4, **ARGUMENTS).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.model(images), same(images))


def test_labels_that_do_not_fit_the_head_are_refused(named: Settings) -> None:
    assert named.backbone.labels is not None
    named.backbone.labels.write_text("ada\nbo\n")
    with pytest.raises(BackboneError, match="2"):
        open_backbone(named)


def test_a_named_backbone_is_not_trained(named: Settings) -> None:
    steps: list[object] = []
    prepare_backbone(named, steps.append)
    assert steps == []
    assert not (named.home_path / "backbones").exists()


def test_of_two_first_starts_one_trains_and_the_other_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    briefly = partial(pretrain, config=PretrainConfig(steps=2))
    monkeypatch.setattr(backbones, "pretrain", briefly)
    settings = load_settings(home=tmp_path)
    trained: list[str] = []
    ready = threading.Barrier(2)

    def start() -> str:
        ready.wait(10)
        name = threading.current_thread().name
        prepare_backbone(settings, lambda _: trained.append(name))
        return open_backbone(settings).fingerprint

    with ThreadPoolExecutor(2) as starts:
        first, second = (each.result() for each in [starts.submit(start) for _ in range(2)])
    assert first == second
    assert len(set(trained)) == 1
    left = {path.name for path in (tmp_path / "backbones").iterdir()}
    name = embedded_folder(settings).name
    assert left == {name, f".{name}.lock"}


def test_a_folder_without_a_backbone_is_named(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, backbone={"directory": tmp_path / "absent"})
    with pytest.raises(BackboneError, match="absent"):
        open_backbone(settings)
