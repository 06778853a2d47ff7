from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch

from forgetting.models.backbone import Backbone
from forgetting.models.prefix import PIXELS, advance, lowest_cut, outputs_from


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_outputs_from_any_cut_equal_the_whole_pass(
    untrained: Callable[..., Backbone], cut: int
) -> None:
    model = untrained(depth=3).model
    x = torch.randn(7, 1, 8, 8)
    tokens = advance(model, x, start=PIXELS, stop=cut, batch=3)
    assert torch.allclose(outputs_from(model, tokens, cut=cut).logits, model(x), atol=1e-6)


def test_advancing_in_two_steps_equals_advancing_in_one(
    untrained: Callable[..., Backbone],
) -> None:
    model = untrained(depth=3).model
    x = torch.randn(4, 1, 8, 8)
    at_once = advance(model, x, start=PIXELS, stop=2)
    halfway = advance(model, x, start=PIXELS, stop=1)
    assert torch.equal(advance(model, halfway, start=1, stop=2), at_once)


def test_vit_of_another_build_is_cut_at_the_pixels() -> None:
    options = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("beit_base_patch16_224", **options).eval()
    assert lowest_cut(model) == PIXELS
    x = torch.randn(2, 3, 32, 32)
    same = advance(model, x, start=PIXELS, stop=PIXELS)
    assert torch.equal(outputs_from(model, same, cut=PIXELS).logits, model(x))
