from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from forgetting.data.preprocess import Preprocess, transform
from forgetting.errors import BackboneError
from forgetting.models.backbone import (
    Backbone,
    BackboneSpec,
    build_model,
    features_and_logits,
    fingerprint,
    freeze,
    load_backbone,
    load_timm,
    save_backbone,
)

Make = Callable[..., Backbone]


def test_saved_backbone_comes_back_with_the_same_fingerprint_and_logits(
    untrained: Make, tmp_path: Path
) -> None:
    first = untrained()
    save_backbone(tmp_path, first)
    second = load_backbone(tmp_path)
    x = torch.randn(3, 1, 8, 8)
    assert second.spec == first.spec
    assert second.fingerprint == first.fingerprint
    assert torch.equal(first.model(x), second.model(x))


def test_backbone_is_frozen_and_in_eval_mode(untrained: Make) -> None:
    model = untrained().model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_fingerprint_changes_with_one_bit_of_one_weight(untrained: Make) -> None:
    backbone = untrained()
    before = fingerprint(backbone.model)
    weight = backbone.model.get_parameter("head.weight")
    weight.data.view(torch.int32)[0, 0] ^= 1
    assert fingerprint(backbone.model) != before


def test_logits_are_the_heads_reading_of_the_embedding(untrained: Make) -> None:
    model = untrained().model
    x = torch.randn(5, 1, 8, 8)
    embedding, logits = features_and_logits(model, x)
    head = model.get_submodule("head")
    assert torch.equal(logits, head(embedding))
    assert torch.allclose(logits, model(x), atol=1e-6)


def test_missing_directory_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.json is missing"):
        load_backbone(tmp_path / "nothing")


def test_truncated_weights_are_refused(untrained: Make, tmp_path: Path) -> None:
    save_backbone(tmp_path, untrained())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BackboneError, match="not a whole safetensors file"):
        load_backbone(tmp_path)


def test_exchanged_weights_are_refused(untrained: Make, tmp_path: Path) -> None:
    save_backbone(tmp_path, untrained(seed=0))
    other = untrained(seed=1).model.state_dict()
    safetensors.torch.save_file(other, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="fingerprint"):
        load_backbone(tmp_path)


def test_spec_with_a_missing_field_is_refused(untrained: Make, tmp_path: Path) -> None:
    save_backbone(tmp_path, untrained())
    path = tmp_path / "backbone.json"
    facts = json.loads(path.read_text())
    del facts["preprocess"]["mean"]
    path.write_text(json.dumps(facts))
    with pytest.raises(BackboneError, match="mean"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(("written", "read"), [(None, False), (True, True), ("yes", True)])
def test_a_folder_says_whether_an_edit_is_in_the_head_and_an_old_one_says_nothing(
    untrained: Make, tmp_path: Path, written: object, read: bool
) -> None:
    save_backbone(tmp_path, untrained())
    path = tmp_path / "backbone.json"
    facts = json.loads(path.read_text())
    assert facts.pop("edit_in_head") is False
    path.write_text(json.dumps(facts if written is None else {**facts, "edit_in_head": written}))
    assert load_backbone(tmp_path).spec.edit_in_head is read


def _write_timm(folder: Path, *, classes: int) -> tuple[Path, Path]:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, depth=2)
    weights, labels = folder / "vit.safetensors", folder / "labels.txt"
    safetensors.torch.save_file(model.state_dict(), weights)
    labels.write_text("\n".join(f"thing {i}" for i in range(classes)) + "\n")
    return weights, labels


def test_any_timm_vit_loads_from_local_weights_and_labels(tmp_path: Path) -> None:
    weights, labels = _write_timm(tmp_path, classes=7)
    backbone = load_timm(
        "vit_tiny_patch16_224", weights=weights, labels=labels, model_args={"depth": 2}
    )
    assert backbone.spec.classes == tuple(f"thing {i}" for i in range(7))
    assert backbone.spec.preprocess.input_size == (3, 224, 224)
    assert backbone.spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert backbone.spec.preprocess.crop_pct == 0.9
    save_backbone(tmp_path / "own", backbone)
    assert load_backbone(tmp_path / "own").fingerprint == backbone.fingerprint


def test_wrong_number_of_labels_is_named(tmp_path: Path) -> None:
    weights, labels = _write_timm(tmp_path, classes=7)
    labels.write_text("one\ntwo\n")
    with pytest.raises(BackboneError, match=r"head\.bias has shape \(7,\), expected \(2,\)"):
        load_timm("vit_tiny_patch16_224", weights=weights, labels=labels, model_args={"depth": 2})


def test_missing_keys_are_named(tmp_path: Path) -> None:
    weights, labels = _write_timm(tmp_path, classes=3)
    with pytest.raises(BackboneError, match=r"missing blocks\.2\..* more"):
        load_timm("vit_tiny_patch16_224", weights=weights, labels=labels, model_args={"depth": 3})


def test_doubled_labels_are_named(tmp_path: Path) -> None:
    weights, labels = _write_timm(tmp_path, classes=3)
    labels.write_text("cat\ndog\ncat\n")
    with pytest.raises(BackboneError, match="cat"):
        load_timm("vit_tiny_patch16_224", weights=weights, labels=labels)


@pytest.mark.parametrize("path", ["weights", "labels"])
def test_missing_file_is_named(tmp_path: Path, path: str) -> None:
    weights, labels = _write_timm(tmp_path, classes=3)
    missing = {"weights": weights, "labels": labels}[path]
    missing.unlink()
    with pytest.raises(BackboneError, match=missing.name):
        load_timm("vit_tiny_patch16_224", weights=weights, labels=labels, model_args={"depth": 2})


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_distilled_patch16_224"])
def test_models_that_are_no_plain_vit_are_refused(name: str) -> None:
    preprocess = Preprocess(input_size=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(BackboneError, match=name):
        build_model(BackboneSpec(name, {}, ("a", "b"), preprocess))


def test_unknown_model_name_is_named() -> None:
    preprocess = Preprocess(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(BackboneError, match="vit_of_dreams"):
        build_model(BackboneSpec("vit_of_dreams", {}, ("a", "b"), preprocess))


def test_freezing_with_too_few_names_is_refused(untrained: Make) -> None:
    backbone = untrained(classes=4)
    spec = BackboneSpec("vit_tiny_patch16_224", {}, ("a", "b"), backbone.spec.preprocess)
    with pytest.raises(BackboneError, match="4 rows but 2 class names"):
        freeze(backbone.model, spec)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_mode_becomes_an_input(mode: str, channels: int) -> None:
    apply = transform(
        Preprocess(input_size=(channels, 8, 10), mean=(0.5,) * channels, std=(0.25,) * channels)
    )
    picture = Image.fromarray(np.full((20, 30, 3), 255, dtype=np.uint8)).convert(mode)
    tensor = apply(picture)
    assert tensor.shape == (channels, 8, 10)
    assert torch.allclose(tensor, torch.full_like(tensor, 2.0), atol=0.05)  # (1 - 0.5) / 0.25
