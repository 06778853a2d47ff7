from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from forgetting.models.backbone import Backbone
from forgetting.models.targets import find_groups
from forgetting.training.lora import attach, detach, update_norm

Make = Callable[..., Backbone]


def test_fresh_pairs_change_nothing(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    x = torch.randn(3, 1, 8, 8)
    before = model(x)
    attached = attach(model, find_groups(model), rank=2, generator=torch.Generator())
    assert torch.equal(model(x), before)
    assert all(update_norm(pairs) == 0 for pairs in attached.values())


def test_gradient_reaches_only_the_pairs(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    attach(model, find_groups(model)[1:], rank=2, generator=torch.Generator())
    model(torch.randn(3, 1, 8, 8)).square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    pairs = {f"blocks.{i}.mlp.{fc}.{m}" for i in (1, 2) for fc in ("fc1", "fc2") for m in "ab"}
    assert with_gradient == pairs
    assert {name for name, p in model.named_parameters() if p.requires_grad} == pairs


def test_pair_adds_b_a_to_the_weight(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    group = find_groups(model)[0]
    attached = attach(model, [group], rank=3, generator=torch.Generator())
    pair = attached[group][0]
    torch.nn.init.normal_(pair.b)
    x = torch.randn(5, pair.base.in_features)
    merged = torch.nn.functional.linear(x, pair.base.weight + pair.b @ pair.a, pair.base.bias)
    assert torch.allclose(pair(x), merged, atol=1e-5)


def test_detaching_puts_the_plain_linears_back(untrained: Make) -> None:
    backbone = untrained()
    model = copy.deepcopy(backbone.model)
    for group, pairs in attach(
        model, find_groups(model), rank=2, generator=torch.Generator()
    ).items():
        torch.nn.init.normal_(pairs[0].b)
        detach(model, group, pairs)
    assert model.state_dict().keys() == backbone.model.state_dict().keys()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), backbone.model(x))
