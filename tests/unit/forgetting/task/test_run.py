from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from forgetting.adapter.low_rank import effective_weights, from_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.subset import without_classes
from forgetting.errors import BackboneError, DataError
from forgetting.measure.accuracy import share_right
from forgetting.methods.lethe import Lethe
from forgetting.models.backbone import Backbone
from forgetting.report.card import dumps, to_markdown
from forgetting.task.run import TaskResult, run_task
from forgetting.training.config import TrainConfig
from forgetting.training.progress import Progress

QUICK = TrainConfig(rank=4, select_steps=25, refit_steps=60, copies=0, replay_per_class=10)
SUBJECTS = {"0": "subject-a", "1": "subject-b"}


@pytest.fixture(scope="module")
def first(backbone: Backbone, digit_images: ImageSet) -> TaskResult:
    return run_task(
        backbone,
        [],
        images=digit_images,
        forget=["0"],
        earlier=[],
        subjects=SUBJECTS,
        stack_ids=[],
        config=QUICK,
        seed=5,
    )


def test_report_counts_what_the_shipped_files_do(
    first: TaskResult, backbone: Backbone, digit_images: ImageSet
) -> None:
    model = adapted_model(backbone, [from_files(first.files, backbone)])
    preprocess = backbone.spec.preprocess
    for names, share in (
        (["0"], first.report.acc_f_after),
        ([str(d) for d in range(1, 10)], first.report.acc_r_after),
    ):
        rows = indices(digit_images, "test", classes=names)
        x, y = to_tensors(digit_images, rows, preprocess)
        assert share_right(model, x, y) == share
    assert first.report.acc_f_before.value > 0.8
    assert first.report.adapter_bytes == sum(len(c) for c in first.files.values())


def test_report_measures_what_the_gates_ask_for(first: TaskResult) -> None:
    report = first.report
    # An AUC takes more test images than a digit has; all others are judged.
    assert [gate.name for gate in first.gates if gate.value is None] == ["verification"]
    assert 0 < report.near_after.n < report.acc_r_after.n
    assert 0 < report.ece_after < 0.5
    assert report.leak.n <= report.acc_f_before.hits
    assert report.emission.n == report.acc_r_after.n
    assert report.leaks is not None
    assert report.leaks.figures["prototypes"].after < report.leaks.figures["prototypes"].before
    assert report.unmeasured == 0
    assert report.acc_m_after is None


def test_adapted_model_has_the_effective_weights_and_leaves_the_backbone(
    first: TaskResult, backbone: Backbone
) -> None:
    model = adapted_model(backbone, [first.adapter])
    weights = effective_weights(backbone.model, [first.adapter])
    for name, parameter in model.named_parameters():
        path = name.removesuffix(".weight")
        expected = weights.get(path) if name.endswith(".weight") else None
        own = backbone.model.get_parameter(name)
        assert torch.equal(parameter, own if expected is None else expected)


def test_facts_name_subjects_and_never_classes(first: TaskResult, backbone: Backbone) -> None:
    facts = first.adapter.facts
    assert facts.backbone == backbone.fingerprint
    assert facts.subjects == ("subject-a",)
    assert facts.seed == 5
    assert facts.config["rank"] == QUICK.rank
    assert facts.method == Lethe.name
    assert facts.groups_kept == len(first.adapter.pairs) // 2
    assert json.loads(first.files["forget.json"])["data_digest"] == first.report.data_digest


def test_second_task_sees_the_stack_and_reports_the_earlier_class(
    first: TaskResult, backbone: Backbone, digit_images: ImageSet
) -> None:
    looks: list[Progress] = []
    second = run_task(
        backbone,
        [first.adapter],
        images=digit_images,
        forget=["1"],
        earlier=["0"],
        subjects=SUBJECTS,
        stack_ids=["adapter-1"],
        config=QUICK,
        progress=looks.append,
        clock=iter(range(1000)).__next__,
    )
    assert second.adapter.facts.stack == ("adapter-1",)
    assert set(second.report.by_subject) == {"subject-a", "subject-b"}
    assert second.report.acc_o_before is not None
    assert second.report.acc_o_after is not None
    assert second.report.acc_o_after.value <= 0.1
    assert second.report.images["earlier_train"] == 10
    assert looks[-1].phase == "refit"
    assert "subject-a" in dumps(second.report, second.gates)
    assert to_markdown(second.report, second.gates).startswith("# Forget report")


def test_progress_comes_at_a_readable_pace(backbone: Backbone, digit_images: ImageSet) -> None:
    looks: list[Progress] = []
    run_task(
        backbone,
        [],
        images=digit_images,
        forget=["0"],
        earlier=[],
        subjects=SUBJECTS,
        stack_ids=[],
        config=QUICK,
        progress=looks.append,
        clock=lambda: 0.0,  # the clock stands still, so there is one note a phase
    )
    assert [look.phase for look in looks] == ["select", "refit"]


@pytest.mark.parametrize(
    ("forget", "earlier", "message"),
    [
        ([], [], "no class to forget"),
        (["ten"], [], "no class 'ten'"),
        (["0", "0"], [], "given twice: 0"),
        (["0"], ["0"], "already forgotten or given twice: 0"),
        (["2"], [], "no subject id was given for 1"),
        (["0"], ["1", "2", "3", "4", "5", "6", "7", "8"], "would leave 1 classes"),
    ],
)
def test_impossible_request_is_refused_with_a_sentence(
    backbone: Backbone,
    digit_images: ImageSet,
    forget: Sequence[str],
    earlier: Sequence[str],
    message: str,
) -> None:
    subjects = SUBJECTS if "2" in forget else {str(d): f"subject-{d}" for d in range(10)}
    with pytest.raises(DataError, match=message):
        run_task(
            backbone,
            [],
            images=digit_images,
            forget=forget,
            earlier=earlier,
            subjects=subjects,
            stack_ids=[],
            config=QUICK,
        )


def test_stack_without_ids_is_refused(
    first: TaskResult, backbone: Backbone, digit_images: ImageSet
) -> None:
    with pytest.raises(DataError, match="one id for each of 1 adapters, got 0"):
        run_task(
            backbone,
            [first.adapter],
            images=digit_images,
            forget=["1"],
            earlier=["0"],
            subjects=SUBJECTS,
            stack_ids=[],
            config=QUICK,
        )


def _moved(images: ImageSet, name: str, *, to: str) -> ImageSet:
    """The images with all of a class moved to one split."""
    label = images.classes.index(name)
    split = tuple(
        to if own == label else part for own, part in zip(images.labels, images.split, strict=True)
    )
    return replace(images, split=split)


def _forget(backbone: Backbone, images: ImageSet, *names: str) -> TaskResult:
    return run_task(
        backbone,
        [],
        images=images,
        forget=names,
        earlier=[],
        subjects=SUBJECTS,
        stack_ids=[],
        config=QUICK,
    )


def test_missing_images_are_reported_and_never_passed_over(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    """1 has no held-out images, 5 none to replay, and 6 none at all."""
    images = _moved(_moved(digit_images, "1", to="train"), "5", to="test")
    result = _forget(backbone, without_classes(images, ["6"]), "0", "1")
    report, gates = result.report, {gate.name: gate for gate in result.gates}
    assert report.by_subject["subject-b"].n == 0
    assert not gates["worst_class"].passed
    assert gates["worst_class"].advice.startswith("1 classes under erasure have no test image")
    assert not result.passed
    assert report.acc_m_before is not None
    assert report.acc_m_after is not None
    assert report.acc_m_after.n == report.acc_m_before.n == sum(digit_images.labels == 5)
    assert report.images["retain_train"] == 6 * QUICK.replay_per_class
    assert report.unmeasured == 1
    assert "nothing is known of 1 retained classes" in to_markdown(report, result.gates)


@pytest.mark.parametrize("split", ["test", "val"])
def test_class_without_training_images_is_refused_by_name(
    backbone: Backbone, digit_images: ImageSet, split: str
) -> None:
    with pytest.raises(DataError, match="class '1' has no images to learn from in digits"):
        _forget(backbone, _moved(digit_images, "1", to=split), "0", "1")


def test_class_without_any_image_is_refused_by_name(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    with pytest.raises(DataError, match="class '0' has no images to learn from in digits"):
        _forget(backbone, without_classes(digit_images, ["0"]), "0")


def test_nothing_to_replay_is_refused(backbone: Backbone, digit_images: ImageSet) -> None:
    images = digit_images
    for name in digit_images.classes[1:]:
        images = _moved(images, name, to="test")
    with pytest.raises(DataError, match="leave 9 classes with images, 0 of them with training"):
        _forget(backbone, images, "0")


def test_image_that_broke_since_the_set_was_opened_is_named(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    sources = list(digit_images.sources)
    broken = int(indices(digit_images, "train", classes=["0"])[0])
    sources[broken] = b"no image"
    with pytest.raises(DataError, match=f"image {broken} of digits can't be decoded"):
        _forget(backbone, replace(digit_images, sources=tuple(sources)), "0")


def test_head_that_no_attack_knows_is_refused_before_training(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    model = copy.deepcopy(backbone.model)
    model.head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 10))
    with pytest.raises(BackboneError, match="one linear in the model's head, found 2"):
        _forget(replace(backbone, model=model), digit_images, "0")
