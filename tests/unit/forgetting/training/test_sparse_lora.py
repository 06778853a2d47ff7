"""GS-LoRA on a small backbone that really recognises digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from forgetting.data.image_set import ImageSet, class_index, indices, replay, to_tensors
from forgetting.data.samples import ForgetData, Samples
from forgetting.errors import TargetError, TrainingError
from forgetting.measure.accuracy import share_right
from forgetting.methods.merging import merged
from forgetting.models.backbone import Backbone
from forgetting.models.targets import find_groups
from forgetting.training.config import (
    TrainConfig,
    affordable_rank,
    most_groups,
    refit_steps_for,
    stored_ratio,
)
from forgetting.training.progress import Progress
from forgetting.training.sparse_lora import TrainResult, train

Make = Callable[..., Backbone]

QUICK = TrainConfig(
    rank=4, select_steps=25, refit_steps=40, copies=0, replay_per_class=10, most_share=0.5
)


def _samples(images: ImageSet, backbone: Backbone, rows: Sequence[int]) -> Samples:
    return Samples(*to_tensors(images, rows, backbone.spec.preprocess))


@pytest.fixture(scope="module")
def data(digit_images: ImageSet, backbone: Backbone) -> ForgetData:
    generator = torch.Generator().manual_seed(0)
    kept = [name for name in digit_images.classes if name != "0"]

    def rows(split: str) -> Sequence[int]:
        return indices(digit_images, split, classes=["0"])[:40].tolist()

    def few(split: str) -> Sequence[int]:
        return replay(
            digit_images, per_class=10, generator=generator, classes=kept, split=split
        ).tolist()

    return ForgetData(
        forget=_samples(digit_images, backbone, rows("train")),
        retain=_samples(digit_images, backbone, few("train")),
        earlier=_samples(digit_images, backbone, []),
        val_forget=_samples(digit_images, backbone, rows("val")),
        val_retain=_samples(digit_images, backbone, few("val")),
        forgotten=torch.tensor([class_index(digit_images, "0")]),
    )


def _train(
    backbone: Backbone,
    data: ForgetData,
    *,
    config: TrainConfig = QUICK,
    seed: int = 0,
    looks: list[Progress] | None = None,
) -> TrainResult:
    return train(
        backbone.model,
        data,
        original=backbone.model,
        config=config,
        generator=torch.Generator().manual_seed(seed),
        progress=None if looks is None else looks.append,
    )


@pytest.fixture(scope="module")
def result(backbone: Backbone, data: ForgetData) -> TrainResult:
    return _train(backbone, data)


def test_forgotten_class_goes_and_the_others_stay(
    backbone: Backbone, data: ForgetData, result: TrainResult
) -> None:
    forget, retain = (
        share_right(backbone.model, samples.x, samples.y).value
        for samples in (data.val_forget, data.val_retain)
    )
    last = result.history[-1]
    assert forget > 0.7
    assert last.val_acc_f <= 0.05
    assert last.val_acc_r >= retain - 0.1


def test_pruned_groups_are_absent_and_surviving_ones_are_not_zero(result: TrainResult) -> None:
    assert result.groups_total == 4
    assert 1 <= result.groups_kept <= 2
    assert len(result.pairs) == 2 * result.groups_kept
    for a, b in result.pairs.values():
        assert bool(b.any())
        assert a.shape[0] == b.shape[1] == QUICK.rank
    blocks = {path.split(".")[1] for path in result.pairs}
    assert len(blocks) == result.groups_kept


def test_rank_fills_what_rank_8_in_every_group_would_store(
    backbone: Backbone, data: ForgetData
) -> None:
    groups = find_groups(backbone.model)
    config = replace(QUICK, rank=None)
    assert most_groups(len(groups), config) == 2
    assert affordable_rank(backbone.model, groups, config=config) == 16  # 4 groups x 8 in 2 groups
    all_stay = replace(config, most_share=1.0)
    assert affordable_rank(backbone.model, groups, config=all_stay) == 8
    result = _train(backbone, data, config=config)
    full = len(groups) * 8 * 2 * (32 + 128)  # two linears of 32 x 128 in each group
    stored = sum(a.numel() + b.numel() for a, b in result.pairs.values())
    assert 0 < stored <= full
    assert stored_ratio(backbone.model, list(result.pairs.values())) == pytest.approx(
        stored / sum(p.numel() for p in backbone.model.parameters())
    )


def test_narrow_backbone_keeps_a_rank_that_it_can_use(untrained: Make) -> None:
    model = untrained(depth=3).model  # 12 wide
    assert affordable_rank(model, find_groups(model), config=TrainConfig()) == 6


def test_task_on_top_of_another_changes_no_more_groups(
    backbone: Backbone, data: ForgetData, result: TrainResult
) -> None:
    ones = data.retain.y == 1
    second = ForgetData(
        forget=Samples(data.retain.x[ones], data.retain.y[ones]),
        retain=Samples(data.retain.x[~ones], data.retain.y[~ones]),
        earlier=data.forget,
        val_forget=Samples(data.retain.x[ones], data.retain.y[ones]),
        val_retain=data.val_retain,
        forgotten=torch.tensor([int(data.forget.y[0]), 1]),
    )
    again = train(
        merged(backbone.model, result.pairs),
        second,
        original=backbone.model,
        config=replace(QUICK, most_share=0.25 * result.groups_kept),
        generator=torch.Generator().manual_seed(1),
    )
    assert set(again.pairs) <= set(result.pairs)


def test_same_seed_gives_the_same_bits(
    backbone: Backbone, data: ForgetData, result: TrainResult
) -> None:
    again = _train(backbone, data)
    assert list(again.pairs) == list(result.pairs)
    for path, (a, b) in result.pairs.items():
        assert torch.equal(again.pairs[path][0], a)
        assert torch.equal(again.pairs[path][1], b)


def test_model_that_is_given_is_left_as_it_is(
    backbone: Backbone, data: ForgetData, result: TrainResult
) -> None:
    from forgetting.models.backbone import fingerprint

    assert result.steps > 0
    assert fingerprint(backbone.model) == backbone.fingerprint
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_progress_is_told_in_order_and_can_cancel(backbone: Backbone, data: ForgetData) -> None:
    class Cancelled(Exception):
        pass

    def cancel(look: Progress) -> None:
        raise Cancelled(look.step)

    looks: list[Progress] = []
    _train(backbone, data, looks=looks)
    assert [look.step for look in looks] == sorted(look.step for look in looks)
    assert {look.phase for look in looks} == {"select", "refit"}
    with pytest.raises(Cancelled):
        train(
            backbone.model,
            data,
            original=backbone.model,
            config=QUICK,
            generator=torch.Generator().manual_seed(0),
            progress=cancel,
        )


def test_broken_loss_is_an_error_and_never_a_result(backbone: Backbone, data: ForgetData) -> None:
    with pytest.raises(TrainingError, match="broke down at step"):
        _train(backbone, data, config=replace(QUICK, rate=1e20))
    bad = replace(data, retain=replace(data.retain, x=data.retain.x * float("nan")))
    with pytest.raises(TrainingError, match="features of retain images are not finite"):
        _train(backbone, bad)


def test_nothing_to_forget_is_an_error(backbone: Backbone, data: ForgetData) -> None:
    wrong = Samples(data.forget.x, torch.full_like(data.forget.y, 5))  # images of 0, called 5
    unknown = replace(data, forget=Samples(wrong.x[:8], wrong.y[:8]))
    with pytest.raises(TrainingError, match="nothing to forget"):
        _train(backbone, unknown)


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_task_without_images_is_an_error(backbone: Backbone, data: ForgetData, name: str) -> None:
    nothing = Samples(data.forget.x[:0], data.forget.y[:0])
    with pytest.raises(TrainingError, match=f"no {name} images"):
        _train(backbone, replace(data, **{name: nothing}))


def test_full_strength_still_leaves_one_group(backbone: Backbone, data: ForgetData) -> None:
    pruned = _train(backbone, data, config=replace(QUICK, sparsity=1.5, most_share=0.25))
    assert pruned.groups_kept == 1


def test_model_without_known_ffns_is_refused(data: ForgetData) -> None:
    other = torch.nn.Linear(4, 2)
    with pytest.raises(TargetError, match="no Transformer `blocks`"):
        train(other, data, original=other, config=QUICK, generator=torch.Generator())


def test_the_second_phase_is_as_long_as_there_are_classes_to_hold() -> None:
    assert [refit_steps_for(classes) for classes in (2, 10, 60)] == [120, 120, 120]
    assert refit_steps_for(100) == 200
    assert refit_steps_for(1000) == 300
