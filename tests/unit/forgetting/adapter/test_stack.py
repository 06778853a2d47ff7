"""Stacks that mix trained pairs and closed-form edits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, AnyAdapter, effective_weights
from forgetting.adapter.stack import (
    EffectiveState,
    adapted_model,
    effective_state,
    install,
    overlaid,
    shared_copy,
)
from forgetting.data.samples import Samples
from forgetting.erasure.edit import LowRankEdit, composed, installed_edit
from forgetting.erasure.leace import fit_edit
from forgetting.erasure.statistics import feature_statistics, without
from forgetting.errors import AdapterError, TargetError
from forgetting.models.backbone import Backbone, features_and_logits, fingerprint
from forgetting.models.targets import find_groups

Make = Callable[..., Backbone]


def _facts(backbone: Backbone) -> AdapterFacts:
    return AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject-1",),
        method="by hand",
        config={},
        seed=0,
        steps=0,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=0,
        groups_total=3,
    )


def _pairs(backbone: Backbone, *, block: int = 1, seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path in find_groups(backbone.model)[block].paths:
        out, width = backbone.model.get_parameter(f"{path}.weight").shape
        a = torch.randn(2, width, generator=generator) / 4
        pairs[path] = (a, torch.randn(out, 2, generator=generator) / 4)
    return Adapter(pairs, _facts(backbone))


def _projection(backbone: Backbone, *, seed: int = 0) -> EditAdapter:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 12, generator=generator)
    mean, shift = torch.randn(2, 12, generator=generator)
    erasure = LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift)
    return EditAdapter(erasure, _facts(backbone))


def _logits(model: nn.Module) -> Tensor:
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        answers: Tensor = model(x)
    return answers


def test_mixed_stack_is_the_merged_weights_below_the_composed_edits(untrained: Make) -> None:
    backbone = untrained()
    low, high = _pairs(backbone, block=0), _pairs(backbone, block=2, seed=1)
    first, second = _projection(backbone), _projection(backbone, seed=1)
    state = effective_state(backbone.model, [low, first, high, second])
    weights = effective_weights(backbone.model, [low, high])
    assert state.weights.keys() == weights.keys()
    assert all(torch.equal(state.weights[path], weights[path]) for path in weights)
    edit = composed([first.erasure, second.erasure])
    assert state.edit is not None
    assert torch.equal(state.edit.matrix, edit.matrix)
    assert torch.equal(state.edit.offset, edit.offset)


def test_order_matters_among_projections_and_not_between_the_kinds(untrained: Make) -> None:
    backbone = untrained()
    pairs, first, second = _pairs(backbone), _projection(backbone), _projection(backbone, seed=1)
    answers = {
        order: _logits(adapted_model(backbone, order))
        for order in itertools.permutations((pairs, first, second))
    }
    for order, logits in answers.items():
        others = [item for item in order if item is not pairs]
        same = torch.equal(logits, answers[(pairs, first, second)])
        assert same == (others == [first, second])


def test_adapted_model_equals_the_stack_applied_step_by_step(untrained: Make) -> None:
    backbone = untrained()
    pairs, first, second = _pairs(backbone), _projection(backbone), _projection(backbone, seed=1)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        e, _ = features_and_logits(adapted_model(backbone, [pairs]), x)
        for erasure in (first.erasure, second.erasure):
            e = e - (e - erasure.mean) @ erasure.a.T @ erasure.b.T + erasure.shift
        found, logits = features_and_logits(adapted_model(backbone, [first, pairs, second]), x)
    torch.testing.assert_close(found, e)
    torch.testing.assert_close(logits, backbone.model.get_classifier()(e))


def test_adapter_with_an_erasure_counts_as_its_pairs_and_its_projection(untrained: Make) -> None:
    backbone = untrained()
    pairs, first, second = _pairs(backbone), _projection(backbone), _projection(backbone, seed=1)
    both = replace(pairs, erasure=first.erasure)
    one = _logits(adapted_model(backbone, [both, second]))
    assert torch.equal(one, _logits(adapted_model(backbone, [pairs, first, second])))
    assert not torch.equal(one, _logits(adapted_model(backbone, [second, both])))


def test_bare_model_stays_as_it_is_and_a_shorter_stack_rolls_back_exactly(untrained: Make) -> None:
    backbone = untrained()
    stack: list[AnyAdapter] = [_pairs(backbone), _projection(backbone)]
    before, bare = _logits(adapted_model(backbone, stack)), _logits(backbone.model)
    higher = adapted_model(backbone, [*stack, _projection(backbone, seed=1)])
    assert not torch.allclose(_logits(higher), before)
    assert torch.equal(_logits(adapted_model(backbone, stack)), before)
    assert torch.equal(_logits(adapted_model(backbone, [])), bare)
    assert fingerprint(backbone.model) == backbone.fingerprint
    assert installed_edit(backbone.model) is None


def test_shared_copy_owns_only_what_the_stack_changes(untrained: Make) -> None:
    backbone = untrained()
    model = shared_copy(backbone.model)
    install(model, effective_state(backbone.model, [_pairs(backbone), _projection(backbone)]))
    theirs = {name: t.data_ptr() for name, t in backbone.model.state_dict().items()}
    own = {n for n, t in model.state_dict().items() if theirs.get(n) != t.data_ptr()}
    fc1, fc2 = find_groups(backbone.model)[1].paths
    assert own == {f"{fc1}.weight", f"{fc2}.weight", "head_drop.matrix", "head_drop.offset"}
    assert fingerprint(backbone.model) == backbone.fingerprint


def test_overlaid_model_computes_the_same_and_shares_all_but_the_way_to_a_change(
    untrained: Make,
) -> None:
    backbone = untrained()
    stack: list[AnyAdapter] = [_pairs(backbone), _projection(backbone)]
    state = effective_state(backbone.model, stack)
    model, bare = overlaid(backbone.model, state), _logits(backbone.model)
    assert torch.equal(_logits(model), _logits(adapted_model(backbone, stack)))
    theirs = set(backbone.model.modules())
    own = {name for name, module in model.named_modules() if module not in theirs}
    fc1, fc2 = find_groups(backbone.model)[1].paths
    block = fc1.split(".mlp")[0]
    assert own == {"", "blocks", block, f"{block}.mlp", fc1, fc2, "head_drop"}
    assert torch.equal(_logits(backbone.model), bare)
    assert fingerprint(backbone.model) == backbone.fingerprint
    assert torch.equal(_logits(overlaid(model, EffectiveState())), _logits(model))


def test_nothing_in_the_stack_changes_nothing(untrained: Make) -> None:
    backbone = untrained()
    state = effective_state(backbone.model, [])
    assert state.weights == {}
    assert state.edit is None
    model = copy.deepcopy(backbone.model)
    install(model, EffectiveState())
    assert fingerprint(model) == backbone.fingerprint


def test_projection_learned_on_a_stack_erases_what_that_stack_makes_of_the_images(
    untrained: Make,
) -> None:
    backbone = untrained(classes=5)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 5
    x = torch.randn(100, 1, 8, 8, generator=generator) + y[:, None, None, None] * 0.5
    stack: list[AnyAdapter] = [_pairs(backbone)]
    bare = feature_statistics(adapted_model(backbone, stack), Samples(x, y)).means[[0, 2, 4]]
    for label in (1, 3):
        below = adapted_model(backbone, stack)
        of = feature_statistics(below, Samples(x, y))
        forget = without(of, set(range(5)) - {label})
        head = below.get_classifier()  # type: ignore[operator]
        stack.append(EditAdapter(fit_edit(of, forget, head=head), _facts(backbone)))
    means = feature_statistics(adapted_model(backbone, stack), Samples(x, y)).means
    kept = means[[0, 2, 4]].mean(dim=0)
    torch.testing.assert_close(means[3], kept, atol=1e-4, rtol=0)
    apart = (means[[0, 2, 4]] - kept).norm(dim=1).max()
    assert apart > 0.1 * (bare - bare.mean(dim=0)).norm(dim=1).max()


def test_state_that_does_not_fit_the_model_is_refused(untrained: Make) -> None:
    backbone = untrained()
    foreign = Adapter({"blocks.9.mlp.fc1": (torch.ones(1, 4), torch.ones(4, 1))}, _facts(backbone))
    with pytest.raises(AdapterError, match=r"blocks\.9\.mlp\.fc1: the backbone has no such module"):
        effective_state(backbone.model, [foreign])
    model = copy.deepcopy(backbone.model)
    model.head_drop = None
    with pytest.raises(TargetError, match="head_drop"):
        install(model, effective_state(backbone.model, [_projection(backbone)]))
