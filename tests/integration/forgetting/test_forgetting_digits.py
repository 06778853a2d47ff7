"""The package's main task on real scans: pre-train, forget one class, then another."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from forgetting.adapter.low_rank import Adapter, from_files
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.sources import digits
from forgetting.measure.accuracy import predict, right
from forgetting.models.backbone import Backbone, load_backbone
from forgetting.report.figures import Report
from forgetting.task.run import TaskResult, run_task
from serving.config.backbones import embedded_folder
from serving.config.sources import load_settings

SUBJECTS = {str(d): f"subject-{d}" for d in range(10)}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return digits(seed=0)


@pytest.fixture(scope="module")
def backbone(digits_backbones: Path) -> Backbone:
    """The embedded default backbone."""
    torch.set_num_threads(1)
    return load_backbone(embedded_folder(load_settings(home=digits_backbones.parent)))


@pytest.fixture(scope="module")
def tasks(images: ImageSet, backbone: Backbone) -> list[tuple[TaskResult, float]]:
    """Forgets 3, then 8 on top; each with its CPU seconds."""
    done: list[tuple[TaskResult, float]] = []
    stack: list[Adapter] = []
    for name, earlier in (("3", []), ("8", ["3"])):
        began = time.process_time()
        result = run_task(
            backbone,
            stack,
            images=images,
            forget=[name],
            earlier=earlier,
            subjects=SUBJECTS,
            stack_ids=[f"adapter-{i}" for i in range(len(stack))],
            seed=0,
        )
        done.append((result, time.process_time() - began))
        stack.append(from_files(result.files, backbone))
    return done


def test_backbone_reaches_96_percent_on_held_out_scans(
    images: ImageSet, backbone: Backbone
) -> None:
    x, y = to_tensors(images, indices(images, "test"), backbone.spec.preprocess)
    assert right(predict(backbone.model, x), y).value >= 0.96


def test_forgotten_class_is_never_named_and_the_others_stay(
    tasks: list[tuple[TaskResult, float]],
) -> None:
    for result, _ in tasks:
        report = result.report
        assert report.acc_f_before.value > 0.85
        assert report.acc_f_after.value <= 0.01
        assert report.acc_r_before.value - report.acc_r_after.value <= 0.01
        assert result.passed, result.gates


def test_class_forgotten_first_stays_forgotten(tasks: list[tuple[TaskResult, float]]) -> None:
    report: Report = tasks[1][0].report
    assert report.acc_o_before is not None
    assert report.acc_o_after is not None
    assert report.acc_o_before.value > 0.85
    assert report.acc_o_after.value <= 0.01


def test_at_least_two_of_six_groups_are_pruned(tasks: list[tuple[TaskResult, float]]) -> None:
    for result, _ in tasks:
        assert result.report.groups_total == 6
        assert result.report.groups_kept <= 4
        assert len(result.adapter.pairs) == 2 * result.report.groups_kept


def test_one_forget_takes_less_than_30_seconds_of_one_core(
    tasks: list[tuple[TaskResult, float]],
) -> None:
    assert max(seconds for _, seconds in tasks) < 30
