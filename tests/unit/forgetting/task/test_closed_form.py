"""A task in closed form: its files have the effect that its report measured; the gates judge it."""

from __future__ import annotations

import pytest
import torch

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.low_rank import from_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.errors import DataError
from forgetting.measure.accuracy import share_right
from forgetting.models.backbone import Backbone
from forgetting.report.card import dumps
from forgetting.report.gates import GateConfig
from forgetting.task.closed_form import run_closed_form
from forgetting.task.run import TaskResult

SUBJECTS = {"0": "subject-a", "1": "subject-b"}


@pytest.fixture(scope="module")
def first(backbone: Backbone, digit_images: ImageSet) -> TaskResult:
    return run_closed_form(
        backbone,
        [],
        images=digit_images,
        forget=["0"],
        earlier=[],
        subjects=SUBJECTS,
        stack_ids=[],
    )


def test_the_class_is_hardly_named_any_more_and_the_others_still_are(
    first: TaskResult, backbone: Backbone, digit_images: ImageSet
) -> None:
    model = adapted_model(backbone, [from_files(first.files, backbone)])
    for names, share in (
        (["0"], first.report.acc_f_after),
        ([str(d) for d in range(1, 10)], first.report.acc_r_after),
    ):
        rows = indices(digit_images, "test", classes=names)
        x, y = to_tensors(digit_images, rows, backbone.spec.preprocess)
        assert share_right(model, x, y) == share
    assert first.report.acc_f_before.value > 0.8
    assert first.report.acc_f_after.value <= 0.1
    assert first.report.acc_r_after.value >= first.report.acc_r_before.value - 0.1
    assert first.report.seconds < 5


def test_it_is_judged_by_the_same_gates(first: TaskResult) -> None:
    # An AUC takes more test images than a digit has; all others are judged.
    assert [g.name for g in first.gates if g.value is None] == ["verification_served"]
    assert isinstance(first.adapter, EditAdapter)
    assert "subject-a" in dumps(first.report, first.gates)
    assert first.adapter.facts.method == first.report.method == "project"


def test_a_second_one_goes_on_top_of_the_first_and_keeps_its_class_down(
    first: TaskResult, backbone: Backbone, digit_images: ImageSet
) -> None:
    second = run_closed_form(
        backbone,
        [first.adapter],
        images=digit_images,
        forget=["1"],
        earlier=["0"],
        subjects=SUBJECTS,
        stack_ids=["sha256:" + "0" * 64],
        gates=GateConfig(acc_r_drop=0.0),
    )
    assert second.report.acc_f_after.value <= 0.1
    assert second.report.acc_o_after is not None
    assert second.report.acc_o_after.value <= 0.1
    again = run_closed_form(
        backbone,
        [first.adapter],
        images=digit_images,
        forget=["1"],
        earlier=["0"],
        subjects=SUBJECTS,
        stack_ids=["sha256:" + "0" * 64],
    )
    assert again.files == second.files
    assert torch.isfinite(again.adapter.erasure.a).all()  # type: ignore[union-attr]


def test_a_stack_without_its_ids_is_refused(backbone: Backbone, digit_images: ImageSet) -> None:
    with pytest.raises(DataError, match="one id for each"):
        run_closed_form(
            backbone,
            [],
            images=digit_images,
            forget=["0"],
            earlier=[],
            subjects=SUBJECTS,
            stack_ids=["x"],
        )
