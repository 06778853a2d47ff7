"""Attackers on other heads and other models than the ranking's digits."""

from __future__ import annotations

import timm
import torch

from forgetting.attacks.finetune import SCOPES, FinetuneConfig, finetune, recall
from forgetting.attacks.layers import layers
from forgetting.attacks.prompt import PromptConfig, prompted
from forgetting.data.samples import Samples
from forgetting.models import face_transformer
from forgetting.models.prefix import PIXELS, lowest_cut

GONE = torch.tensor([0, 3])


def images(n: int, *, side: int, channels: int) -> Samples:
    generator = torch.Generator().manual_seed(n)
    y = torch.arange(n) % 4
    x = 0.3 * torch.randn(n, channels, side, side, generator=generator)
    for i, label in enumerate(y.tolist()):  # each class has its own bright quarter
        top, left = (side // 2 * (label // 2), side // 2 * (label % 2))
        x[i, :, top : top + side // 2, left : left + side // 2] += 2
    return Samples(x, y)


def test_a_cosine_head_is_attacked_with_its_margin() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        face_transformer.NAME,
        num_classes=4,
        in_chans=1,
        img_size=16,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    ).eval()
    train, test = (images(n, side=16, channels=1) for n in (64, 40))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curves = finetune(
        model,
        train=train,
        test=test,
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=FinetuneConfig(looks=(1, 100), rate=1e-3),
    )
    assert [(c.scope, c.shots) for c in curves] == [(s, n) for s in SCOPES for n in (5, 0)]
    assert recall(curves, "all", 5, 100) > 0.9  # type: ignore[operator]
    assert recall(curves, "all", 5, 30) is None
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    point = prompted(
        model,
        train=train,
        test=test,
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=PromptConfig(steps=3),
    )
    assert 0 <= point.acc_f <= 1
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_model_that_can_not_be_cut_is_attacked_from_its_pixels() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "cait_xxs24_224", num_classes=4, img_size=32, patch_size=16, depth=2, embed_dim=16,
        num_heads=2,
    ).eval()  # fmt: skip
    assert lowest_cut(model) == PIXELS
    train, test = (images(n, side=32, channels=3) for n in (24, 12))
    curves = finetune(
        model,
        train=train,
        test=test,
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=FinetuneConfig(scopes=("head",), looks=(1, 2)),
    )
    assert [len(curve.acc_f) for curve in curves] == [2, 2]
    points = layers(
        model, train=train, test=test, forgotten=GONE, generator=torch.Generator().manual_seed(0)
    )
    assert [point.depth for point in points] == [None]
