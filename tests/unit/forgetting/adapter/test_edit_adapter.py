"""The files of a closed-form adapter: reading returns it exactly, and refuses anything else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from forgetting.adapter.edit_adapter import PROJECTION_FILE, EditAdapter
from forgetting.adapter.files import FACTS_FILE, AdapterFacts
from forgetting.adapter.low_rank import AnyAdapter, from_files, to_files
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone

Make = Callable[..., Backbone]
WIDTH = 12


def _erasure(*, rank: int = 2, width: int = WIDTH) -> LowRankEdit:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(rank, width, generator=generator)
    mean, shift = torch.randn(2, width, generator=generator)
    return LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift)


def _projection(backbone: Backbone, erasure: LowRankEdit | None = None) -> EditAdapter:
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=("first",),
        subjects=("subject-1", "subject-2"),
        method="project",
        config={"shrinkage": 0.01},
        seed=0,
        steps=0,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=0,
        groups_total=3,
    )
    return EditAdapter(erasure or _erasure(), facts)


def _read(files: Mapping[str, bytes], backbone: Backbone) -> AnyAdapter:
    return from_files(files, backbone)


def _changed(files: Mapping[str, bytes], **tensors: Tensor | None) -> dict[str, bytes]:
    """The files with some tensors replaced, or left out if None."""
    whole = {**safetensors.torch.load(files[PROJECTION_FILE]), **tensors}
    kept = {name: tensor for name, tensor in whole.items() if tensor is not None}
    return {**files, PROJECTION_FILE: safetensors.torch.save(kept, {"format": "pt"})}


def test_projection_comes_back_from_its_files(untrained: Make) -> None:
    backbone = untrained()
    first = _projection(backbone)
    second = _read(to_files(first), backbone)
    assert isinstance(second, EditAdapter)
    assert second.facts == first.facts
    for name in ("a", "b", "mean", "shift"):
        assert torch.equal(getattr(second.erasure, name), getattr(first.erasure, name))


def test_files_are_two_and_the_same_bytes_for_the_same_projection(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    assert set(files) == {"projection.safetensors", "forget.json"}
    assert files == to_files(_projection(backbone)) == to_files(_read(files, backbone))
    (length,) = struct.unpack("<Q", files[PROJECTION_FILE][:8])
    header = json.loads(files[PROJECTION_FILE][8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    assert json.loads(files[FACTS_FILE])["kind"] == "projection"


def test_loader_refuses_a_missing_or_additional_file(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    for name in files:
        with pytest.raises(AdapterError, match=f"missing {name}"):
            _read({k: v for k, v in files.items() if k != name}, backbone)
    with pytest.raises(AdapterError, match=r"unexpected adapter_config\.json"):
        _read({**files, "adapter_config.json": b"{}"}, backbone)


def test_loader_refuses_a_truncated_file(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    for name in files:
        for content in (files[name][:-20], b""):
            with pytest.raises(AdapterError, match=name):
                _read({**files, name: content}, backbone)


def test_loader_refuses_a_missing_or_additional_tensor(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    with pytest.raises(AdapterError, match="missing shift"):
        _read(_changed(files, shift=None), backbone)
    with pytest.raises(AdapterError, match="unexpected C"):
        _read(_changed(files, C=torch.zeros(2)), backbone)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("A", lambda t: t.half(), r"projection\.a: expected float32, found torch\.float16"),
        ("B", lambda t: t.double(), r"projection\.b: expected float32, found torch\.float64"),
        ("mean", lambda t: t * float("nan"), r"projection\.mean: holds values .* not finite"),
        ("shift", lambda t: t / 0, r"projection\.shift: holds values .* not finite"),
        ("A", lambda t: t[:1].contiguous(), r"expected A \(k, d\) and B \(d, k\)"),
        ("A", lambda t: t[0].clone(), r"expected A \(k, d\) and B \(d, k\)"),
        ("mean", lambda t: t[1:].clone(), r"projection\.mean: expected shape \(12,\)"),
        ("B", lambda t: t * 1.01, "A B differs from the identity"),
        ("A", lambda t: t * 0, "A B differs from the identity"),
    ],
)
def test_loader_refuses_a_tensor_that_can_not_be_right(
    untrained: Make, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    tensor = safetensors.torch.load(files[PROJECTION_FILE])[name]
    with pytest.raises(AdapterError, match=message):
        _read(_changed(files, **{name: change(tensor)}), backbone)


def test_loader_refuses_features_of_another_width(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone, _erasure(width=16)))
    with pytest.raises(AdapterError, match="features of width 16, the backbone's have 12"):
        _read(files, backbone)


@pytest.mark.parametrize(
    ("rank", "width", "cap"), [(12, 12, 11), (129, 200, 128)], ids=["whole width", "cap"]
)
def test_rank_must_leave_something_and_stay_below_the_cap(
    untrained: Make, rank: int, width: int, cap: int
) -> None:
    with pytest.raises(AdapterError, match=rf"rank {rank} is not in 1\.\.{cap}"):
        _projection(untrained(), _erasure(rank=rank, width=width))


def test_loader_refuses_another_backbone(untrained: Make) -> None:
    files = to_files(_projection(untrained(seed=0)))
    with pytest.raises(AdapterError, match="was learned for backbone"):
        _read(files, untrained(seed=1))


def test_loader_refuses_a_backbone_whose_features_can_not_be_edited(untrained: Make) -> None:
    backbone = untrained()
    backbone.model.head_drop = nn.Sequential()
    with pytest.raises(AdapterError, match=r"expected a dropout named `head_drop`"):
        _read(to_files(_projection(backbone)), backbone)


def test_loader_refuses_a_kind_that_it_does_not_know(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    for kind, message in (
        ("magic", "the kinds lora, lora\\+projection, projection, found 'magic'"),
        (None, "a kind"),
    ):
        facts = {**json.loads(files[FACTS_FILE]), "kind": kind}
        with pytest.raises(AdapterError, match=message):
            _read({**files, FACTS_FILE: json.dumps(facts).encode()}, backbone)


def test_a_projection_can_not_pass_for_trained_pairs(untrained: Make) -> None:
    backbone = untrained()
    files = to_files(_projection(backbone))
    facts = {**json.loads(files[FACTS_FILE]), "kind": "lora"}
    with pytest.raises(AdapterError, match=r"adapter files: missing adapter_config\.json"):
        _read({**files, FACTS_FILE: json.dumps(facts).encode()}, backbone)
