from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from forgetting.attacks.head import (
    bare_head,
    margin_logits,
    restarted,
    revived,
    with_head,
)
from forgetting.errors import BackboneError
from forgetting.methods.head_mask import MaskedHead
from forgetting.models.backbone import Backbone
from forgetting.models.face_transformer import CosineHead


def test_mask_around_the_head_is_left_off(untrained: Callable[..., Backbone]) -> None:
    model: Any = untrained().model
    inner = model.head
    model.head = MaskedHead(inner, torch.tensor([1]))
    found = bare_head(model)
    assert found is not inner
    assert torch.equal(found.weight, inner.weight)


def test_head_without_a_single_linear_is_refused(untrained: Callable[..., Backbone]) -> None:
    model: Any = untrained().model
    model.head = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 4))
    with pytest.raises(BackboneError, match="found 2 in Sequential"):
        bare_head(model)


def test_only_masked_rows_are_revived() -> None:
    head = nn.Linear(3, 5)
    with torch.no_grad():
        head.weight[1] = 0.0
        head.bias[2] = -1e4
    found = revived(head, forgotten=torch.tensor([0, 1, 2]))
    assert torch.equal(found.weight[0], head.weight[0])
    for row in (1, 2):
        torch.testing.assert_close(found.weight[row], head.weight[3:].mean(dim=0))
        torch.testing.assert_close(found.bias[row], head.bias[3:].mean())
    assert torch.equal(found.weight[3:], head.weight[3:])
    assert head.bias[2] == -1e4


def test_restart_forgets_what_was_in_the_forgotten_rows() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    with torch.no_grad():
        second.weight[2:] = first.weight[2:]
        second.bias[2:] = first.bias[2:]
    gone = torch.tensor([0, 1])
    a, b = restarted(first, forgotten=gone), restarted(second, forgotten=gone)
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(a.bias, b.bias)


def test_restart_and_revival_know_heads_without_bias() -> None:
    head = CosineHead(3, 4)
    with torch.no_grad():
        head.weight[0] = 0.0
    gone = torch.tensor([0])
    expected = head.weight[1:].mean(dim=0)
    torch.testing.assert_close(revived(head, forgotten=gone).weight[0], expected)
    torch.testing.assert_close(restarted(head, forgotten=gone).weight[0], expected)


def test_margin_is_taken_off_the_label_alone() -> None:
    head, y = CosineHead(3, 4), torch.tensor([2, 0])
    logits = head(torch.randn(2, 3))
    found = logits - margin_logits(head, logits, y)
    expected = torch.zeros(2, 4)
    expected[0, 2] = expected[1, 0] = 64 * 0.35
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_plain_head_has_no_margin() -> None:
    head, logits = nn.Linear(3, 4), torch.randn(2, 4)
    assert torch.equal(margin_logits(head, logits, torch.tensor([0, 1])), logits)


def test_another_head_leaves_the_model_as_it_was(untrained: Callable[..., Backbone]) -> None:
    model: Any = untrained().model
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    other = nn.Linear(12, 4)
    changed = with_head(model, other)
    assert torch.equal(model(x), before)
    assert torch.equal(bare_head(changed).weight, other.weight)
    assert not torch.allclose(changed(x), before)
