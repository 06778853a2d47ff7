from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import Tensor

from forgetting.adapter.edit_adapter import PROJECTION_FILE
from forgetting.adapter.files import FACTS_FILE, AdapterFacts
from forgetting.adapter.low_rank import (
    CONFIG_FILE,
    TENSORS_FILE,
    Adapter,
    delta,
    effective_weights,
    from_files,
    to_files,
)
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone
from forgetting.models.targets import find_groups

Make = Callable[..., Backbone]
KEY = "base_model.model.blocks.1.mlp.fc1.lora_{}.weight"


def _adapter(backbone: Backbone, *, blocks: tuple[int, ...] = (1,), rank: int = 2) -> Adapter:
    generator = torch.Generator().manual_seed(7)
    pairs = {}
    for group in find_groups(backbone.model):
        if group.index in blocks:
            for path in group.paths:
                out, width = backbone.model.get_parameter(f"{path}.weight").shape
                a = torch.randn(rank, width, generator=generator)
                pairs[path] = (a, torch.randn(out, rank, generator=generator))
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=("first",),
        subjects=("subject-1",),
        method="gs_lora",
        config={"rank": rank, "rate": 0.005},
        seed=3,
        steps=10,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=len(blocks),
        groups_total=3,
    )
    return Adapter(pairs=pairs, facts=facts)


def _tensors(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = safetensors.torch.load(files[TENSORS_FILE])
    return tensors


def _with_tensors(files: Mapping[str, bytes], tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    content = safetensors.torch.save(dict(tensors), {"format": "pt"})
    return {**files, TENSORS_FILE: content}


def test_adapter_comes_back_from_its_files(untrained: Make) -> None:
    backbone = untrained()
    first = _adapter(backbone, blocks=(0, 2))
    second = from_files(to_files(first), backbone)
    assert second.facts == first.facts
    assert list(second.pairs) == sorted(first.pairs)
    for path, (a, b) in first.pairs.items():
        assert torch.equal(second.pairs[path][0], a)
        assert torch.equal(second.pairs[path][1], b)


def test_files_are_the_same_bytes_whatever_the_order_of_the_pairs(untrained: Make) -> None:
    adapter = _adapter(untrained(), blocks=(0, 1, 2))
    backwards = Adapter(dict(reversed(list(adapter.pairs.items()))), adapter.facts)
    assert to_files(adapter) == to_files(backwards)


def test_effective_weights_equal_a_merge_by_hand(untrained: Make) -> None:
    backbone = untrained()
    first, second = _adapter(backbone, blocks=(0, 1)), _adapter(backbone, blocks=(1,), rank=3)
    weights = effective_weights(backbone.model, [first, second])
    assert set(weights) == set(first.pairs)
    for path, weight in weights.items():
        by_hand = backbone.model.get_parameter(f"{path}.weight").clone()
        for adapter in (first, second):
            if path in adapter.pairs:
                a, b = adapter.pairs[path]
                by_hand += b @ a
        assert torch.allclose(weight, by_hand, atol=1e-5)


def test_effective_weights_leave_the_model_as_it_is_and_repeat_exactly(untrained: Make) -> None:
    backbone = untrained()
    stack = [_adapter(backbone), _adapter(backbone, rank=3)]
    once = effective_weights(backbone.model, stack)
    again = effective_weights(backbone.model, stack)
    assert all(torch.equal(once[path], again[path]) for path in once)
    assert untrained().fingerprint == backbone.fingerprint


def test_delta_is_b_times_a(untrained: Make) -> None:
    adapter = _adapter(untrained())
    a, b = adapter.pairs["blocks.1.mlp.fc1"]
    assert torch.allclose(delta(adapter, "blocks.1.mlp.fc1"), b @ a, atol=1e-6)


def test_peft_config_names_full_paths_and_scale_one(untrained: Make) -> None:
    backbone = untrained()
    wide, narrow = _adapter(backbone, blocks=(0,), rank=4), _adapter(backbone, blocks=(2,), rank=2)
    both = Adapter({**wide.pairs, **narrow.pairs}, replace(wide.facts, groups_kept=2))
    config = json.loads(to_files(both)[CONFIG_FILE])
    assert config["target_modules"] == sorted(both.pairs)
    assert config["r"] == config["lora_alpha"] == 4
    narrow_ranks = {"blocks.2.mlp.fc1": 2, "blocks.2.mlp.fc2": 2}
    assert config["rank_pattern"] == config["alpha_pattern"] == narrow_ranks
    assert "layers_to_transform" not in config
    assert torch.equal(
        from_files(to_files(both), backbone).pairs["blocks.2.mlp.fc1"][0],
        narrow.pairs["blocks.2.mlp.fc1"][0],
    )


def test_safetensors_metadata_is_exactly_the_format(untrained: Make) -> None:
    content = to_files(_adapter(untrained()))[TENSORS_FILE]
    (length,) = struct.unpack("<Q", content[:8])
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_adapter_without_pairs_cannot_be_made(untrained: Make) -> None:
    facts = _adapter(untrained()).facts
    with pytest.raises(AdapterError, match="without a single pair"):
        Adapter({}, facts)


def test_loader_refuses_a_missing_or_additional_file(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    with pytest.raises(AdapterError, match=r"missing forget\.json"):
        from_files({k: v for k, v in files.items() if k != FACTS_FILE}, backbone)
    with pytest.raises(AdapterError, match=r"unexpected README\.md"):
        from_files({**files, "README.md": b""}, backbone)


def test_loader_refuses_a_truncated_file(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    for name in files:
        with pytest.raises(AdapterError, match=name):
            from_files({**files, name: files[name][:-20]}, backbone)
        with pytest.raises(AdapterError, match=name):
            from_files({**files, name: b""}, backbone)


def test_loader_refuses_a_missing_key_that_peft_would_read_as_zero(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    tensors = _tensors(files)
    del tensors[KEY.format("B")]
    with pytest.raises(AdapterError, match=r"missing .*blocks\.1\.mlp\.fc1\.lora_B"):
        from_files(_with_tensors(files, tensors), backbone)


def test_loader_refuses_an_additional_key(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    tensors = {**_tensors(files), "base_model.model.head.lora_A.weight": torch.zeros(2, 12)}
    with pytest.raises(AdapterError, match=r"unexpected base_model\.model\.head"):
        from_files(_with_tensors(files, tensors), backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.half(), "float32"),
        (lambda a: a.double(), "float32"),
        (lambda a: a * float("nan"), "not finite"),
        (lambda a: a[:, :-1].contiguous(), r"blocks\.1\.mlp\.fc1"),
        (lambda a: a[:-1].contiguous(), r"expected A \(r, in\) and B \(out, r\)"),
        (lambda a: a[0].clone(), r"expected A \(r, in\)"),
    ],
)
def test_loader_refuses_a_tensor_that_does_not_fit(
    untrained: Make, change: Callable[[Tensor], Tensor], message: str
) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    tensors = _tensors(files)
    tensors[KEY.format("A")] = change(tensors[KEY.format("A")])
    with pytest.raises(AdapterError, match=message):
        from_files(_with_tensors(files, tensors), backbone)


def test_loader_refuses_a_rank_above_the_cap(untrained: Make) -> None:
    backbone = untrained()
    with pytest.raises(AdapterError, match="rank 129"):
        _adapter(backbone, rank=129)


def test_loader_refuses_another_backbone(untrained: Make) -> None:
    files = to_files(_adapter(untrained(seed=0)))
    with pytest.raises(AdapterError, match="was learned for backbone"):
        from_files(files, untrained(seed=1))


@pytest.mark.parametrize("path", ["blocks.9.mlp.fc1", "blocks.1.mlp.act"])
def test_loader_refuses_a_module_that_the_backbone_does_not_have(
    untrained: Make, path: str
) -> None:
    backbone = untrained()
    adapter = _adapter(backbone)
    foreign = Adapter({path: adapter.pairs["blocks.1.mlp.fc1"]}, adapter.facts)
    with pytest.raises(AdapterError, match=path.replace(".", r"\.")):
        from_files(to_files(foreign), backbone)


def test_loader_refuses_a_scale_that_is_not_one(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    config = {**json.loads(files[CONFIG_FILE]), "lora_alpha": 16}
    with pytest.raises(AdapterError, match=f"{CONFIG_FILE} contradicts"):
        from_files({**files, CONFIG_FILE: json.dumps(config).encode()}, backbone)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "three"), ("subjects", "subject-1"), ("kind", "magic"), ("format", 2)],
)
def test_loader_refuses_facts_of_the_wrong_kind(untrained: Make, name: str, value: object) -> None:
    backbone = untrained()
    files = to_files(_adapter(backbone))
    facts = {**json.loads(files[FACTS_FILE]), name: value}
    with pytest.raises(AdapterError, match=name):
        from_files({**files, FACTS_FILE: json.dumps(facts).encode()}, backbone)


def _with_erasure(backbone: Backbone) -> Adapter:
    generator = torch.Generator().manual_seed(9)
    # Two chained erasures are not a projection, so any A and B are valid.
    a, b = torch.randn(3, 12, generator=generator), torch.randn(12, 3, generator=generator)
    mean, shift = torch.randn(2, 12, generator=generator)
    return replace(_adapter(backbone), erasure=LowRankEdit(a, b, mean, shift))


def test_adapter_with_an_erasure_comes_back_from_its_four_files(untrained: Make) -> None:
    backbone = untrained()
    first = _with_erasure(backbone)
    files = to_files(first)
    assert set(files) == {CONFIG_FILE, TENSORS_FILE, PROJECTION_FILE, FACTS_FILE}
    assert json.loads(files[FACTS_FILE])["kind"] == "lora+projection"
    second = from_files(files, backbone)
    assert isinstance(second, Adapter)
    assert first.erasure is not None
    assert second.erasure is not None
    for name in ("a", "b", "mean", "shift"):
        assert torch.equal(getattr(second.erasure, name), getattr(first.erasure, name))
    assert to_files(second) == files


def test_erasure_can_be_neither_left_out_nor_slipped_in(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_with_erasure(backbone))
    with pytest.raises(AdapterError, match=r"missing projection\.safetensors"):
        from_files({k: v for k, v in files.items() if k != PROJECTION_FILE}, backbone)
    plain = to_files(_adapter(backbone))
    with pytest.raises(AdapterError, match=r"unexpected projection\.safetensors"):
        from_files({**plain, PROJECTION_FILE: files[PROJECTION_FILE]}, backbone)
    with pytest.raises(AdapterError, match="forget.json|adapter files"):
        from_files({**plain, FACTS_FILE: files[FACTS_FILE]}, backbone)


def test_erasure_for_features_of_another_width_is_refused(untrained: Make) -> None:
    backbone = untrained()
    wide = LowRankEdit(torch.ones(1, 14), torch.ones(14, 1), torch.zeros(14), torch.zeros(14))
    with pytest.raises(AdapterError, match="width 14, the backbone's have 12"):
        from_files(to_files(replace(_adapter(backbone), erasure=wide)), backbone)
