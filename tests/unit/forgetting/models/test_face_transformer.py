from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgetting.data.augment import Augmentation
from forgetting.data.image_set import ImageSet
from forgetting.data.preprocess import Preprocess, preprocess_of
from forgetting.errors import BackboneError
from forgetting.measure.accuracy import Share, margin_right, right, share_right
from forgetting.models.backbone import (
    Backbone,
    BackboneSpec,
    build_model,
    features_and_logits,
    fingerprint,
    freeze,
    load_backbone,
    save_backbone,
)
from forgetting.models.face_transformer import NAME, CosineHead, FaceTransformer
from forgetting.models.prefix import PIXELS, advance, lowest_cut
from forgetting.models.targets import find_groups
from forgetting.training.pretrain import PretrainConfig, pretrain

TINY: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": 2.0,
}
GREY = Preprocess(input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))


def face(*, seed: int = 0, classes: int = 4) -> Backbone:
    spec = BackboneSpec(NAME, TINY, tuple(f"person {i}" for i in range(classes)), GREY)
    torch.manual_seed(seed)
    return freeze(build_model(spec), spec)


def head_of(backbone: Backbone) -> CosineHead:
    model: Any = backbone.model
    head: CosineHead = model.get_classifier()
    return head


def test_papers_size_has_the_papers_number_of_parameters() -> None:
    colour = Preprocess(input_size=(3, 112, 112), mean=(0.0,) * 3, std=(1.0,) * 3)
    names = tuple(str(i) for i in range(100))
    model = build_model(BackboneSpec(NAME, {}, names, colour))
    assert sum(p.numel() for p in model.parameters()) == 19_157_504
    assert isinstance(model, FaceTransformer)
    assert model.pos_embed.shape == (1, 197, 512)
    assert 0.9 < float(model.pos_embed.detach().std()) < 1.1
    assert 0.8 < float(model.cls_token.detach().std()) < 1.2
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert {name.split(".", 2)[-1] for name, p in rates.items() if p == 0.1} == {
        "pos_drop",
        "attn.proj_drop",
        "mlp.drop1",
        "mlp.drop2",
    }
    found = preprocess_of(model)
    assert (found.input_size, found.mean, found.std) == ((3, 112, 112), (0.0,) * 3, (1.0,) * 3)


def test_name_is_known_to_whoever_imports_the_backbone_module() -> None:
    code = (
        "import forgetting.models.backbone, timm; "
        f"print(type(timm.create_model('{NAME}', num_classes=3, depth=1)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "FaceTransformer"


def test_logits_are_scaled_cosines() -> None:
    head = CosineHead(5, 3, scale=10.0, margin=0.2)
    e = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack(
        [torch.stack([F.cosine_similarity(row, w, dim=0) for w in head.weight]) for row in e]
    )
    assert torch.allclose(head(e), 10 * expected, atol=1e-5)
    assert torch.allclose(head(3 * e), head(e), atol=1e-5)
    assert head.bias is None


def test_margin_lowers_the_labels_logit_and_no_other() -> None:
    head = CosineHead(5, 3, scale=10.0, margin=0.2)
    e, y = torch.randn(2, 5), torch.tensor([2, 0])
    less = head(e) - head.margin_logits(e, y)
    assert torch.allclose(less, torch.tensor([[0.0, 0.0, 2.0], [2.0, 0.0, 0.0]]), atol=1e-5)


def test_margin_accuracy_counts_only_wins_by_more_than_the_margin() -> None:
    head = CosineHead(2, 2, scale=64.0, margin=0.35)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    angles = torch.tensor([5.0, 40.0, 60.0]).deg2rad()
    e = torch.stack([angles.cos(), angles.sin()], dim=1)
    y = torch.tensor([0, 0, 1])  # won by .91, .12 and .37 of cosine
    assert right(head(e), y) == Share(3, 3)
    assert margin_right(head, e, y) == Share(2, 3)


def test_embedding_is_what_the_head_reads() -> None:
    backbone = face()
    x = torch.rand(5, 1, 8, 8)
    embedding, logits = features_and_logits(backbone.model, x)
    assert embedding.shape == (5, 12)
    assert torch.allclose(logits, backbone.model(x), atol=1e-5)
    assert torch.allclose(logits, head_of(backbone)(embedding), atol=1e-5)
    # A layer norm without training: each embedding has mean 0 and variance 1.
    assert torch.allclose(embedding.mean(dim=1), torch.zeros(5), atol=1e-5)


def test_fused_and_written_out_attention_agree_on_the_scale() -> None:
    model: Any = face().model
    x = torch.rand(3, 1, 8, 8)
    answers = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        answers.append(model(x))
    assert torch.allclose(answers[0], answers[1], atol=1e-4)
    for block in model.blocks:
        block.attn.q_norm = nn.Identity()
    assert not torch.allclose(answers[0], model(x), atol=1e-2)


def test_groups_and_prefix_take_it_for_a_plain_vit() -> None:
    model: Any = face().model
    assert [g.index for g in find_groups(model)] == [0, 1, 2]
    assert lowest_cut(model) == 0
    x = torch.rand(4, 1, 8, 8)
    for cut in range(3):
        kept = advance(model, x, start=PIXELS, stop=cut)
        tokens = advance(model, kept, start=cut, stop=3)
        assert torch.allclose(model.forward_head(model.norm(tokens)), model(x), atol=1e-5)


def test_copy_and_file_give_the_same_answers(tmp_path: Path) -> None:
    backbone = face()
    x = torch.rand(4, 1, 8, 8)
    copied = copy.deepcopy(backbone.model)
    assert fingerprint(copied) == backbone.fingerprint
    assert torch.equal(copied(x), backbone.model(x))
    save_backbone(tmp_path, backbone)
    again = load_backbone(tmp_path)
    assert again.spec == backbone.spec
    assert torch.equal(again.model(x), backbone.model(x))
    assert (head_of(again).scale, head_of(again).margin) == (64.0, 0.35)


def test_scale_and_margin_are_arguments_of_the_model() -> None:
    spec = BackboneSpec(NAME, {**TINY, "scale": 16.0, "margin": 0.1}, ("a", "b"), GREY)
    head = head_of(freeze(build_model(spec), spec))
    assert (head.scale, head.margin) == (16.0, 0.1)


def test_another_number_of_classes_gives_another_cosine_head() -> None:
    model: Any = copy.deepcopy(face().model)
    model.reset_classifier(7)
    assert isinstance(model.get_classifier(), CosineHead)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 must divide embed_dim 12"),
        ({"patch_size": 3}, "patch_size 3 must divide img_size 8"),
        ({"qkv_bias": True}, "qkv_bias"),
    ],
)
def test_senseless_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        build_model(BackboneSpec(NAME, {**TINY, **arguments}, ("a", "b"), GREY))


def test_pretraining_learns_with_the_margin(digit_images: ImageSet) -> None:
    arguments = {**TINY, "img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "scale": 16.0}
    preprocess = Preprocess((1, 16, 16), mean=(0.0,), std=(1.0,), crop_mode="squash")
    mild = Augmentation(rotation=4, scale=0.04, shift=0.03, contrast=0.06, brightness=0.03)
    config = PretrainConfig(steps=200, batch=32, peak_rate=6e-3, augmentation=mild)
    run = pretrain(
        digit_images, model=NAME, model_args=arguments, preprocess=preprocess, config=config
    )
    assert run.test.value > 0.4  # chance is .1


def test_same_seed_gives_the_same_weights_in_spite_of_dropout(digit_images: ImageSet) -> None:
    config = PretrainConfig(steps=3, batch=8)
    runs = [
        pretrain(digit_images, model=NAME, model_args=TINY, preprocess=GREY, config=config)
        for _ in range(2)
    ]
    first, again = (run.backbone for run in runs)
    assert first.fingerprint == again.fingerprint
    x = torch.rand(3, 1, 8, 8)
    y = torch.tensor([1, 2, 3])
    assert share_right(first.model, x, y) == share_right(again.model, x, y)
