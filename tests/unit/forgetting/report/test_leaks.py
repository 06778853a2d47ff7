"""The report's attacks, on a small backbone that really recognises digits."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forgetting.attacks.leak import AttackConfig, attack
from forgetting.attacks.probe import ProbeConfig
from forgetting.attacks.reading import Reading
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.roles import TaskClasses
from forgetting.data.samples import Samples
from forgetting.data.subset import limited, without_classes
from forgetting.models.backbone import Backbone
from forgetting.report.gates import GateConfig
from forgetting.report.leaks import (
    MOST_PER_CLASS,
    NEIGHBOUR,
    PROBE,
    PROTOTYPES,
    VERIFIED,
    Leaks,
    measure_leaks,
)

CLASSES = TaskClasses(tuple(str(d) for d in range(2, 10)), forget=("0", "1"), earlier=())


def _measured(
    backbone: Backbone,
    model: torch.nn.Module,
    images: ImageSet,
    *,
    classes: TaskClasses = CLASSES,
    asked: int | None = None,
) -> Leaks:
    rows = indices(images, "test", classes=classes.forget)[:asked]
    forget = Samples(*to_tensors(images, rows, backbone.spec.preprocess))
    return measure_leaks(
        backbone,
        model,
        previous=backbone.model,
        images=images,
        classes=classes,
        forget=forget,
    )


@pytest.fixture(scope="module")
def unchanged(backbone: Backbone, digit_images: ImageSet) -> Leaks:
    return _measured(backbone, backbone.model, digit_images)


def test_model_that_forgot_nothing_keeps_everything(unchanged: Leaks) -> None:
    assert list(unchanged.figures) == [
        "recovery", "probe_1", "probe_5", "probe_20", "prototypes", "nearest", "probe_last_block",
        "nearest_last_block", "verification",
    ]  # fmt: skip
    for figure in unchanged.figures.values():
        assert figure.after == figure.before
        assert figure.kept == 1.0
    assert unchanged.figures["probe_20"].before > 0.8
    assert unchanged.membership_auc == unchanged.membership_before
    assert [block.after for block in unchanged.blocks] == [b.before for b in unchanged.blocks]
    assert [block.after.depth for block in unchanged.blocks] == [1, 2, 3, 4, None]
    assert unchanged.reading == Reading(auc=0.5, certain=0.0, forgotten=2, candidates=10)


def test_gates_tell_features_that_hold_nothing_from_those_that_hold_all(
    unchanged: Leaks, backbone: Backbone, digit_images: ImageSet
) -> None:
    limits = GateConfig()
    blind = copy.deepcopy(backbone.model)
    with torch.no_grad():
        blind.get_parameter("fc_norm.weight").zero_()
    leaks = _measured(backbone, blind, digit_images)
    # The same answer for every image may still be right for half of them.
    shares = {
        PROBE: limits.probe,
        PROTOTYPES: limits.prototypes,
        NEIGHBOUR: limits.nearest,
        VERIFIED: limits.verification,
    }
    for name, share in shares.items():
        assert leaks.figures[name].low < leaks.figures[name].allowed(share)
    written = unchanged.figures[PROTOTYPES]
    assert written.low > written.allowed(limits.prototypes)


def test_figures_are_the_benchmarks(
    unchanged: Leaks, backbone: Backbone, digit_images: ImageSet
) -> None:
    """All training images of a small set are used, so both give the same figures."""
    few = limited(digit_images, 10)
    own = _measured(backbone, backbone.model, few)
    train = Samples(*to_tensors(few, indices(few, "train"), backbone.spec.preprocess))
    test = Samples(*to_tensors(few, indices(few, "test"), backbone.spec.preprocess))
    found = attack(
        backbone.model,
        train=train,
        test=test,
        forgotten=torch.tensor([0, 1]),
        generator=torch.Generator().manual_seed(0),
        config=AttackConfig(probe=ProbeConfig(shots=(20,)), relearn=None),
    )
    # When every image is drawn, the generator has no effect.
    assert own.figures["probe_20"].after == pytest.approx(found.probe[0].recall_f)
    assert own.images == 100
    assert unchanged.images == 10 * MOST_PER_CLASS


def test_images_of_earlier_classes_are_left_out(backbone: Backbone, digit_images: ImageSet) -> None:
    with_earlier = TaskClasses(CLASSES.retained[1:], forget=("0", "1"), earlier=("2",))
    few = limited(digit_images, 5)
    leaks = _measured(backbone, backbone.model, few, classes=with_earlier)
    gone = without_classes(few, ["2"])
    without = _measured(backbone, backbone.model, gone, classes=with_earlier)
    assert replace(without, cpu_seconds=leaks.cpu_seconds) == leaks
    assert leaks.images == 9 * 5


def test_a_class_with_one_test_image_counts_only_if_no_class_has_two(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    labels, parts = digit_images.labels, np.array(digit_images.split)
    spare = np.flatnonzero((labels == 0) & (parts == "test"))[1:]
    few = _dropped(digit_images, spare)
    one = _measured(backbone, backbone.model, few)
    assert one.figures["probe_5"].n == len(indices(few, "test", classes=["1"]))
    alone = TaskClasses(tuple(str(d) for d in range(1, 10)), forget=("0",), earlier=())
    alone_measured = _measured(backbone, backbone.model, few, classes=alone)
    counts = {name: figure.n for name, figure in alone_measured.figures.items()}
    assert counts["prototypes"] == 0
    assert set(counts) - {"prototypes"} == {
        "recovery", "probe_1", "probe_5", "probe_20", "nearest", "probe_last_block",
        "nearest_last_block",
    }  # fmt: skip
    assert {counts[name] for name in set(counts) - {"prototypes"}} == {1}


def test_without_test_images_nothing_is_attacked(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    leaks = _measured(backbone, backbone.model, digit_images, asked=0)
    assert leaks.figures == {}
    assert leaks.unmeasurable == "there are no test images of the forgotten classes"


def _dropped(images: ImageSet, rows: NDArray[np.int64]) -> ImageSet:
    kept = np.setdiff1d(np.arange(len(images)), rows)
    return replace(
        images,
        labels=images.labels[kept],
        split=tuple(images.split[i] for i in kept),
        sources=tuple(images.sources[i] for i in kept),
    )
