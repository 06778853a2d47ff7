"""One forget task without any training: an erasure of the feature, fitted in closed form.

What `task.run_task` makes in a minute, this makes about as fast as its report can be measured
(`project.project`; LEACE). It is a stop-gap: it leaves the FFNs as they are, so what a new head
could learn from the features below the edit stays, and the gates judge it by the same limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from forgetting.adapter import AdapterFacts, AnyAdapter, Projection, from_files, to_files
from forgetting.adapter_files import code_version
from forgetting.attacks.head import bare_head
from forgetting.backbone import Backbone
from forgetting.data import ImageSet, for_classes, to_tensors
from forgetting.errors import DataError
from forgetting.feature_statistics import feature_statistics
from forgetting.gates import GateConfig, judge
from forgetting.method import Samples
from forgetting.project import MARGIN, SHRINKAGE, project
from forgetting.task import TaskResult, adapted_model, task_classes
from forgetting.task_data import training_data
from forgetting.task_report import Cost, Models, measure_task

METHOD = "project"


@dataclass(frozen=True)
class ClosedFormConfig:
    """See `project.project`. `replay_per_class`: most images of each class for the statistics."""

    shrinkage: float = SHRINKAGE
    margin: float = MARGIN
    replay_per_class: int = 50


def run_closed_form(
    backbone: Backbone,
    stack: Sequence[AnyAdapter],
    *,
    images: ImageSet,
    forget: Sequence[str],
    earlier: Sequence[str],
    withheld: Sequence[str] = (),
    subjects: Mapping[str, str],
    stack_ids: Sequence[str],
    config: ClosedFormConfig | None = None,
    gates: GateConfig | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> TaskResult:
    """Erase some classes from the feature, on top of a stack, and judge the result on held-out
    images. Arguments and errors as those of `task.run_task`; `seed` draws the replay."""
    config, gates = config or ClosedFormConfig(), gates or GateConfig()
    if len(stack) != len(stack_ids):
        raise DataError(f"expected one id for each of {len(stack)} adapters, got {len(stack_ids)}")
    images = for_classes(images, backbone.spec.classes)
    classes = task_classes(
        images, forget=forget, earlier=earlier, withheld=withheld, subjects=subjects
    )
    bare_head(backbone.model)
    previous: Any = adapted_model(backbone, stack)
    data = training_data(
        images,
        classes,
        samples=lambda rows: Samples(*to_tensors(images, rows, backbone.spec.preprocess)),
        replay_per_class=config.replay_per_class,
        generator=torch.Generator().manual_seed(seed),
    )
    started = clock()
    targets = feature_statistics(previous, data.forget)
    erasure = project(
        feature_statistics(previous, data.retain),
        targets,
        head=previous.get_classifier(),
        earlier=sorted(set(data.forgotten.tolist()) - set(targets.labels)),
        shrinkage=config.shrinkage,
        margin=config.margin,
    )
    seconds = clock() - started
    adapter = Projection(
        erasure,
        AdapterFacts(
            backbone=backbone.fingerprint,
            stack=tuple(stack_ids),
            subjects=tuple(subjects[name] for name in forget),
            method=METHOD,
            config=asdict(config),
            seed=seed,
            steps=0,
            data_digest=images.manifest_digest,
            code_version=code_version(),
            groups_kept=0,
            groups_total=0,
        ),
    )
    files = to_files(adapter)
    # What is measured is what is shipped: the adapter as its files give it back.
    after = adapted_model(backbone, [*stack, from_files(files, backbone)])
    report = measure_task(
        Models(backbone, previous, after),
        adapter,
        images=images,
        classes=classes,
        subjects=subjects,
        cost=Cost(
            images={"forget_train": len(data.forget), "retain_train": len(data.retain)},
            adapter_bytes=sum(len(content) for content in files.values()),
            seconds=seconds,
        ),
    )
    return TaskResult(adapter, files, report, judge(report, gates))
