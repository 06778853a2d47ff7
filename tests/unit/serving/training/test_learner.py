"""What a training returns, and which words about a failed one may go into the ledger."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from forgetting.adapter.low_rank import from_files
from forgetting.adapter.stack import adapted_model
from forgetting.errors import DataError, TrainingError
from forgetting.models.backbone import load_backbone
from forgetting.models.golden import golden_figures, golden_image
from serving.config.settings import Settings
from serving.config.sources import load_settings
from serving.training.learner import Learner, kind_of
from serving.training.messages import NotTrained, Trained, TrainJob
from tests.unit.serving.small_server import IDLE, LENIENT


def _settings(
    tiny: Path, train: Mapping[str, object], gates: Mapping[str, float] | None = None
) -> Settings:
    return load_settings(
        home=tiny / "home",
        images=str(tiny / "images"),
        backbone={"directory": tiny / "backbone"},
        forget={"train": train, "gates": gates or {}},
    )


def _learn(
    tiny: Path,
    *names: str,
    gates: Mapping[str, float],
    together: bool = False,
    attempt: int = 0,
) -> Trained | NotTrained:
    job = TrainJob(
        job="job-1",
        forget=names,
        earlier=(),
        withheld=(),
        subjects={name: f"subject-{i}" for i, name in enumerate(names)},
        stack=(),
        files=(),
        together=together,
        attempt=attempt,
    )
    return Learner(_settings(tiny, IDLE, gates)).train(job)


def test_refusal_names_gate_value_limit_and_advice(tiny: Path) -> None:
    learned = _learn(tiny, "zoe", gates={})
    assert isinstance(learned, Trained)
    assert learned.refused is not None
    first = learned.refused.split("; ")[0]
    assert first.startswith("acc_f_weights is 0.")
    assert "limit 0.0100: give more forget images" in first
    assert "zoe" not in learned.refused
    assert json.loads(learned.report)["passed"] is False
    assert "zoe" not in learned.report.decode()


def test_limits_of_the_settings_decide(tiny: Path) -> None:
    learned = _learn(tiny, "zoe", gates=LENIENT)
    assert isinstance(learned, Trained)
    assert learned.refused is None
    limits = {gate["name"]: gate["limit"] for gate in json.loads(learned.report)["gates"]}
    assert limits["acc_f"] == limits["worst_class"] == 1.0
    backbone = load_backbone(tiny / "backbone")
    model = adapted_model(backbone, [from_files(learned.files, backbone)])
    with torch.no_grad():
        found = golden_figures(model(golden_image(backbone.spec.preprocess.input_size)))
    assert json.loads(learned.report)["golden"] == pytest.approx(found, abs=1e-5)


def test_classes_of_several_jobs_are_each_judged_as_if_alone(tiny: Path) -> None:
    gates = {**LENIENT, "acc_f": 0.5}
    alone = _learn(tiny, "zoe", "bo", gates=gates)
    together = _learn(tiny, "zoe", "bo", gates=gates, together=True)
    assert isinstance(alone, Trained)
    assert isinstance(together, Trained)
    assert alone.files == together.files
    limits = [
        {gate["name"]: gate["limit"] for gate in json.loads(found.report)["gates"]}["worst_class"]
        for found in (alone, together)
    ]
    assert limits == [1.0, 0.5]


def test_a_retry_draws_from_another_seed(tiny: Path) -> None:
    seeds = []
    for attempt in (0, 1):
        learned = _learn(tiny, "zoe", gates=LENIENT, attempt=attempt)
        assert isinstance(learned, Trained)
        seeds.append(json.loads(learned.files["forget.json"])["seed"])
    assert seeds == [0, 1]


def test_class_without_images_is_no_adapter_and_names_nobody_in_the_ledger(tiny: Path) -> None:
    learned = _learn(tiny, "eve", gates={})
    assert isinstance(learned, NotTrained)
    assert learned.kind.startswith("the images of the data set can't be used")
    assert "eve" not in learned.kind
    assert "no class 'eve'" in learned.detail


def test_a_report_that_can_not_be_written_is_no_adapter(tiny: Path) -> None:
    """A failure after the training counts like one in it, so the job is given up in the end."""
    learned = _learn(tiny, "zoe", gates={**LENIENT, "acc_f": math.nan})
    assert isinstance(learned, NotTrained)
    assert "ValueError" in learned.kind
    assert "zoe" not in learned.kind


@pytest.mark.parametrize(
    "error",
    [
        DataError("image faces/zoe/3.png can't be decoded"),
        TrainingError("forgetting zoe would leave 1 class"),
        MemoryError("while zoe was loaded"),
    ],
)
def test_the_sentence_for_the_ledger_names_nobody(error: Exception) -> None:
    assert "zoe" not in kind_of(error)
    assert len(kind_of(error)) > 20


def test_kinds_of_failure_are_told_apart() -> None:
    assert kind_of(DataError("x")) != kind_of(TrainingError("x")) != kind_of(ValueError("x"))


def test_a_cancelled_training_ends_at_its_next_step(tiny: Path) -> None:
    learner = Learner(_settings(tiny, {**IDLE, "select_steps": 10_000}))
    job = TrainJob("job-1", ("zoe",), (), (), {"zoe": "subject-0"}, (), ())
    threading.Thread(target=_cancel_soon, args=(learner,), daemon=True).start()
    outcome = learner.train(job)
    assert isinstance(outcome, NotTrained)
    assert "cancelled" in outcome.kind
    learner.cancel("job-1")  # none is running, so there is nothing to end
    assert learner.progress() == {}


def test_a_training_that_nobody_waits_for_is_given_up_for_the_next(tiny: Path) -> None:
    """Control was killed during a training. The trainer goes on with it and is asked again."""
    learner = Learner(_settings(tiny, {**IDLE, "select_steps": 10_000}))
    job = TrainJob("job-1", ("zoe",), (), (), {"zoe": "subject-0"}, (), ())
    ended: list[Trained | NotTrained] = []
    first = threading.Thread(target=lambda: ended.append(learner.train(job)), daemon=True)
    first.start()
    while not learner.progress():
        time.sleep(0.01)
    second = threading.Thread(target=lambda: ended.append(learner.train(job)), daemon=True)
    second.start()
    first.join(10)
    assert not first.is_alive()
    assert second.is_alive()
    while not learner.progress():
        time.sleep(0.01)
    learner.cancel("job-1")
    second.join(10)
    assert not second.is_alive()
    assert [type(outcome) for outcome in ended] == [NotTrained, NotTrained]


def _cancel_soon(learner: Learner) -> None:
    while not learner.progress():
        time.sleep(0.01)
    learner.cancel("job-2")
    time.sleep(0.3)
    assert learner.progress(), "another job was cancelled"
    learner.cancel("job-1")
