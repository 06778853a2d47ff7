"""Compaction: one adapter with the outputs of a stack, in files that any loader accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from forgetting.adapter import compaction
from forgetting.adapter.compaction import Compaction, compact
from forgetting.adapter.edit_adapter import PROJECTION_FILE, EditAdapter
from forgetting.adapter.files import COMPACTION, AdapterFacts
from forgetting.adapter.low_rank import (
    CONFIG_FILE,
    Adapter,
    AnyAdapter,
    effective_weights,
    from_files,
    to_files,
)
from forgetting.adapter.stack import effective_state, install, shared_copy
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone
from forgetting.models.targets import find_groups

Make = Callable[..., Backbone]
WIDTH = 12


def _facts(backbone: Backbone, seed: int) -> AdapterFacts:
    return AdapterFacts(
        backbone=backbone.fingerprint,
        stack=tuple(f"adapter-{below}" for below in range(seed)),
        subjects=(f"subject-{seed}", "subject-of-all"),
        method="gs_lora",
        config={},
        seed=seed,
        steps=10,
        data_digest=f"sha256:{seed % 2:02}",
        code_version="0",
        groups_kept=1,
        groups_total=3,
    )


def _erasure(seed: int, *, rank: int = 2) -> LowRankEdit:
    generator = torch.Generator().manual_seed(100 + seed)
    a = torch.randn(rank, WIDTH, generator=generator)
    mean, shift = torch.randn(2, WIDTH, generator=generator)
    return LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift)


def _pairs(
    backbone: Backbone, seed: int, *, blocks: Sequence[int] = (1,), rank: int = 2
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for group in find_groups(backbone.model):
        if group.index in blocks:
            for path in group.paths:
                out, width = backbone.model.get_parameter(f"{path}.weight").shape
                a = 0.1 * torch.randn(rank, width, generator=generator)
                pairs[path] = (a, 0.1 * torch.randn(out, rank, generator=generator))
    return Adapter(pairs, _facts(backbone, seed))


def _both(backbone: Backbone, seed: int, *, blocks: Sequence[int] = (1,)) -> Adapter:
    return replace(_pairs(backbone, seed, blocks=blocks), erasure=_erasure(seed))


def _projection(backbone: Backbone, seed: int) -> EditAdapter:
    return EditAdapter(_erasure(seed), _facts(backbone, seed))


def _probes(count: int = 16) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _compact(backbone: Backbone, stack: Sequence[AnyAdapter]) -> Compaction:
    ids = [f"adapter-{number}" for number in range(len(stack))]
    return compact(backbone, stack, stack_ids=ids, probes=_probes())


def _logits(backbone: Backbone, stack: Sequence[AnyAdapter], x: Tensor) -> Tensor:
    model = shared_copy(backbone.model)
    install(model, effective_state(backbone.model, stack))
    with torch.inference_mode():
        logits: Tensor = model(x)
    return logits


STACKS: dict[str, Callable[[Backbone], list[AnyAdapter]]] = {
    "pairs of the same block": lambda b: [_pairs(b, 1), _pairs(b, 2, rank=3)],
    "pairs of other blocks": lambda b: [_pairs(b, 1, blocks=(0,)), _pairs(b, 2, blocks=(1, 2))],
    "projections": lambda b: [_projection(b, 1), _projection(b, 2), _projection(b, 3)],
    "both in one": lambda b: [_both(b, 1), _both(b, 2, blocks=(0, 1))],
    "all kinds": lambda b: [_pairs(b, 1), _projection(b, 2), _both(b, 3), _pairs(b, 4)],
    "more than full rank": lambda b: [_both(b, seed, blocks=(0, 1)) for seed in range(9)],
}


@pytest.mark.parametrize("name", STACKS)
def test_a_compaction_answers_as_its_stack_does(untrained: Make, name: str) -> None:
    backbone = untrained()
    stack = STACKS[name](backbone)
    made = _compact(backbone, stack)
    fresh = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = _logits(backbone, stack, fresh)
    found = _logits(backbone, [from_files(made.files, backbone)], fresh)
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((expected - _logits(backbone, [], fresh)).abs().max()) > 1e-3
    assert 0 <= made.difference <= 1e-5
    assert made.probes == 16


def test_pairs_are_put_side_by_side_without_changing_a_number(untrained: Make) -> None:
    backbone = untrained()
    first, second = _pairs(backbone, 1), _pairs(backbone, 2, rank=3)
    made = _compact(backbone, [first, second])
    assert isinstance(made.adapter, Adapter)
    assert made.rank == 5
    for path, (a, b) in made.adapter.pairs.items():
        assert torch.equal(a, torch.cat([first.pairs[path][0], second.pairs[path][0]]))
        assert torch.equal(b, torch.cat([first.pairs[path][1], second.pairs[path][1]], dim=1))
    assert b"lora_alpha" in made.files[CONFIG_FILE]


def test_no_pair_has_a_higher_rank_than_its_matrix(untrained: Make) -> None:
    backbone = untrained()
    stack = [_pairs(backbone, seed, rank=4) for seed in range(8)]
    made = _compact(backbone, stack)
    assert isinstance(made.adapter, Adapter)
    assert made.rank == WIDTH  # of 32 = 8 x 4
    assert sum(map(len, made.files.values())) < made.bytes_before
    exact = effective_weights(backbone.model, stack)
    for path, weight in effective_weights(backbone.model, [made.adapter]).items():
        assert torch.allclose(weight, exact[path], rtol=0, atol=1e-6)


def test_the_facts_name_what_it_stands_for(untrained: Make) -> None:
    backbone = untrained()
    facts = _compact(backbone, [_pairs(backbone, 1), _pairs(backbone, 2, blocks=(0, 1))]).adapter
    assert facts.facts == AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject-1", "subject-of-all", "subject-2"),
        method=COMPACTION,
        config={"folds": "adapter-0 adapter-1"},
        seed=0,
        steps=0,
        data_digest="sha256:01 sha256:00",
        code_version=facts.facts.code_version,
        groups_kept=2,
        groups_total=3,
    )


def test_a_compaction_is_compacted_again_with_what_came_on_top(untrained: Make) -> None:
    backbone = untrained()
    stack = [_both(backbone, 1), _both(backbone, 2)]
    once = _compact(backbone, stack).adapter
    top = _both(backbone, 3, blocks=(0, 1))
    twice = _compact(backbone, [once, top])
    x = _probes(30)
    expected = _logits(backbone, [*stack, top], x)
    assert torch.allclose(_logits(backbone, [twice.adapter], x), expected, rtol=0, atol=3e-5)
    assert twice.adapter.facts.data_digest == "sha256:01 sha256:00"


def test_the_same_stack_gives_the_same_bytes(untrained: Make) -> None:
    backbone = untrained()
    stack = STACKS["more than full rank"](backbone)
    assert _compact(backbone, stack).files == _compact(backbone, stack).files


def test_only_a_compaction_may_have_a_product_of_projections_alone(untrained: Make) -> None:
    backbone = untrained()
    made = _compact(backbone, [_projection(backbone, 1), _projection(backbone, 2)]).adapter
    assert isinstance(made, EditAdapter)
    assert set(to_files(made)) == {PROJECTION_FILE, "forget.json"}
    with pytest.raises(AdapterError, match="is no projection"):
        EditAdapter(made.erasure, replace(made.facts, method="project"))


@pytest.mark.parametrize("method", ["gs_lora", COMPACTION])
def test_no_loader_takes_a_rank_above_its_limit(untrained: Make, method: str) -> None:
    backbone = untrained()
    adapter = _pairs(backbone, 1, blocks=(0,), rank=WIDTH)
    facts = replace(adapter.facts, method=method)
    assert Adapter(adapter.pairs, facts).pairs
    rank = 129 if method == "gs_lora" else WIDTH + 1
    with pytest.raises(AdapterError, match=f"rank {rank} is not in 1.."):
        replace(_pairs(backbone, 1, blocks=(0,), rank=rank), facts=facts)


@pytest.mark.parametrize("adapters", [0, 1])
def test_a_stack_with_nothing_to_compact_is_refused(untrained: Make, adapters: int) -> None:
    backbone = untrained()
    stack = [_pairs(backbone, seed) for seed in range(adapters)]
    with pytest.raises(AdapterError, match=f"a stack of {adapters} has nothing to compact"):
        _compact(backbone, stack)


def test_ids_that_do_not_fit_the_stack_are_refused(untrained: Make) -> None:
    backbone = untrained()
    stack = [_pairs(backbone, 1), _pairs(backbone, 2)]
    with pytest.raises(AdapterError, match="expected one id for each of 2 adapters"):
        compact(backbone, stack, stack_ids=["adapter-0"], probes=_probes())


def test_outputs_that_differ_are_refused_with_the_difference(
    untrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = untrained()
    monkeypatch.setattr(compaction, "_balanced", lambda a, b: (a.float(), 1.01 * b.float()))
    with pytest.raises(AdapterError, match=r"differ by \d\.\de-0\d.*the stack stays as it is"):
        _compact(backbone, [_projection(backbone, 1), _projection(backbone, 2)])
