"""Hugging Face PEFT loads Lethe's adapters, and Lethe loads PEFT's.

Only these tests need PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forgetting.adapter.compaction import compact
from forgetting.adapter.files import FACTS_FILE, AdapterFacts
from forgetting.adapter.low_rank import (
    CONFIG_FILE,
    TENSORS_FILE,
    Adapter,
    effective_weights,
    from_files,
    to_files,
)
from forgetting.data.preprocess import Preprocess
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze

peft = pytest.importorskip("peft", reason="Hugging Face PEFT is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Two ranks, and blocks 1 and 11, whose names PEFT must not confuse.
RANKS = {"blocks.1.mlp.fc1": 3, "blocks.1.mlp.fc2": 3, "blocks.11.mlp.fc1": 2}


@dataclass(frozen=True)
class Case:
    backbone: Backbone
    adapter: Adapter
    images: Tensor


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 12, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    names = tuple(f"class {i}" for i in range(4))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, names, preprocess)
    backbone = freeze(build_model(spec), spec)
    pairs = {}
    for path, rank in RANKS.items():
        out, width = backbone.model.get_parameter(f"{path}.weight").shape
        pairs[path] = (torch.randn(rank, width) / 4, torch.randn(out, rank) / 4)
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject-1",),
        method="gs_lora",
        config={"rank": 3},
        seed=0,
        steps=1,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=2,
        groups_total=12,
    )
    return Case(backbone, Adapter(pairs=pairs, facts=facts), torch.randn(5, 1, 8, 8))


def merged_logits(case: Case, adapter: Adapter) -> Tensor:
    model = build_model(case.backbone.spec).eval()
    model.load_state_dict(case.backbone.model.state_dict())
    with torch.no_grad():
        for path, weight in effective_weights(model, [adapter]).items():
            model.get_submodule(path).weight.copy_(weight)
        return model(case.images)


def bare_copy(case: Case) -> nn.Module:
    model = build_model(case.backbone.spec)
    model.load_state_dict(case.backbone.model.state_dict())
    return model.eval()


@pytest.fixture
def saved_by_peft(case: Case, tmp_path: Path) -> dict[str, bytes]:
    """The files that PEFT writes for a LoRA adapter with the same modules and ranks."""
    config = peft.LoraConfig(
        r=3,
        lora_alpha=3,
        target_modules=list(RANKS),
        rank_pattern={"blocks.11.mlp.fc1": 2},
        alpha_pattern={"blocks.11.mlp.fc1": 2},
        init_lora_weights=False,
    )
    peft.get_peft_model(bare_copy(case), config).save_pretrained(str(tmp_path / "saved"))
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


def test_peft_opens_a_compaction_and_gives_the_logits_of_its_stack(
    case: Case, tmp_path: Path
) -> None:
    pairs = {
        path: (b.T.contiguous(), a.T.contiguous()) for path, (a, b) in case.adapter.pairs.items()
    }
    swapped = {"blocks.1.mlp.fc1": pairs["blocks.1.mlp.fc2"]}  # (12, 48) there, (48, 12) here
    other = Adapter(pairs=swapped, facts=case.adapter.facts)
    stack = [case.adapter, other, case.adapter, other, other]
    made = compact(case.backbone, stack, stack_ids=[*"abcde"], probes=case.images)
    assert made.rank == 6  # of 15 in blocks.1.mlp.fc1, which is above 12: factored anew
    for name, data in made.files.items():
        (tmp_path / name).write_bytes(data)
    opened = peft.PeftModel.from_pretrained(bare_copy(case), str(tmp_path)).eval()
    model = build_model(case.backbone.spec).eval()
    model.load_state_dict(case.backbone.model.state_dict())
    with torch.no_grad():
        for path, weight in effective_weights(model, stack).items():
            model.get_submodule(path).weight.copy_(weight)
        torch.testing.assert_close(opened(case.images), model(case.images), atol=1e-5, rtol=0)


def test_peft_opens_our_adapter_and_gives_the_logits_of_our_merge(
    case: Case, tmp_path: Path
) -> None:
    for name, data in to_files(case.adapter).items():
        (tmp_path / name).write_bytes(data)
    opened = peft.PeftModel.from_pretrained(bare_copy(case), str(tmp_path)).eval()
    expected = merged_logits(case, case.adapter)
    with torch.no_grad():
        torch.testing.assert_close(opened(case.images), expected, atol=1e-5, rtol=0)
        bare = bare_copy(case)(case.images)
    # The adapter has an effect; otherwise any loader would pass.
    assert (expected - bare).abs().max() > 1e-2


def test_an_adapter_saved_by_peft_is_refused_for_want_of_its_facts(
    case: Case, saved_by_peft: dict[str, bytes]
) -> None:
    assert {CONFIG_FILE, TENSORS_FILE} <= set(saved_by_peft)
    with pytest.raises(AdapterError, match=f"missing {FACTS_FILE}"):
        from_files(saved_by_peft, case.backbone)
    named = {name: saved_by_peft[name] for name in (CONFIG_FILE, TENSORS_FILE)}
    named[FACTS_FILE] = to_files(case.adapter)[FACTS_FILE]
    with pytest.raises(AdapterError, match=f"{CONFIG_FILE} contradicts"):
        from_files(named, case.backbone)


def test_tensors_saved_by_peft_are_read_beside_our_config_and_facts(
    case: Case, saved_by_peft: dict[str, bytes]
) -> None:
    files = {**to_files(case.adapter), TENSORS_FILE: saved_by_peft[TENSORS_FILE]}
    adapter = from_files(files, case.backbone)
    assert isinstance(adapter, Adapter)
    assert {path: a.shape[0] for path, (a, _) in adapter.pairs.items()} == RANKS
