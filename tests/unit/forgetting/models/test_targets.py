from __future__ import annotations

import pytest
import timm
import torch

from forgetting.errors import TargetError
from forgetting.models.targets import Group, find_groups


def _bare(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = timm.create_model(name)
    return model


def test_every_block_of_a_vit_is_a_group_of_two_linears() -> None:
    groups = find_groups(_bare("vit_tiny_patch16_224"))
    assert [g.index for g in groups] == list(range(12))
    assert groups[11] == Group(11, ("blocks.11.mlp.fc1", "blocks.11.mlp.fc2"))


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_giant_patch14_dinov2"])
def test_gated_ffn_is_refused_with_what_was_found(name: str) -> None:
    with pytest.raises(TargetError, match=r"block 0 .* found GluMlp with mlp\.fc1 \(\d+ -> \d+\)"):
        find_groups(_bare(name))


def test_model_without_blocks_is_refused_with_what_was_found() -> None:
    with pytest.raises(TargetError, match=r"no Transformer `blocks`; found conv1 \(Conv2d\)"):
        find_groups(_bare("resnet18"))


def test_attention_and_single_linears_can_be_groups() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    attention = find_groups(model, targets="attention")
    assert attention[0] == Group(0, ("blocks.0.attn.qkv", "blocks.0.attn.proj"))
    both = find_groups(model, targets="both", grouping="lora")
    assert len(both) == 48
    assert both[3] == Group(0, ("blocks.0.mlp.fc2",))
    with pytest.raises(ValueError, match="expected one of ffn, attention, both, found 'head'"):
        find_groups(model, targets="head")  # type: ignore[arg-type]
