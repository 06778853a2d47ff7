"""One forget task without any training: a feature edit, fitted in closed form.

`run_task` takes a minute; this takes hardly longer than measuring the report (LEACE,
`erasure.leace`). It is a stop-gap: no weight changes, and whoever takes the edit out has the class
back. So the gates judge it as served, its report says what the weights still know, and no class
counts as forgotten by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import AdapterFacts, code_version
from forgetting.adapter.low_rank import AnyAdapter
from forgetting.data.image_set import ImageSet
from forgetting.erasure.edit import check_room
from forgetting.erasure.leace import MARGIN, SHRINKAGE, fit_edit
from forgetting.erasure.statistics import feature_statistics
from forgetting.models.backbone import Backbone
from forgetting.report.gates import GateConfig
from forgetting.task.run import TaskResult, judged, prepared

METHOD = "project"


@dataclass(frozen=True)
class ClosedFormConfig:
    """See `leace.fit_edit`. `replay_per_class` is the most images of each class for statistics."""

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
    """Erase some classes from the feature, on top of a stack, and judge it on held-out images.

    Arguments and errors are those of `run_task`. `seed` is the seed of the replay.
    """
    config = config or ClosedFormConfig()
    task = prepared(
        backbone,
        stack,
        images=images,
        forget=forget,
        earlier=earlier,
        withheld=withheld,
        subjects=subjects,
        stack_ids=stack_ids,
        replay_per_class=config.replay_per_class,
        generator=torch.Generator().manual_seed(seed),
    )
    previous: Any = task.previous
    data = task.data
    started = clock()
    targets = feature_statistics(previous, data.forget)
    check_room(previous, classes=len(targets.labels))
    erasure = fit_edit(
        feature_statistics(previous, data.retain),
        targets,
        head=previous.get_classifier(),
        earlier=sorted(set(data.forgotten.tolist()) - set(targets.labels)),
        shrinkage=config.shrinkage,
        margin=config.margin,
    )
    seconds = clock() - started
    adapter = EditAdapter(
        erasure,
        AdapterFacts(
            backbone=backbone.fingerprint,
            stack=tuple(stack_ids),
            subjects=tuple(subjects[name] for name in forget),
            method=METHOD,
            config=asdict(config),
            seed=seed,
            steps=0,
            data_digest=task.images.manifest_digest,
            code_version=code_version(),
            groups_kept=0,
            groups_total=0,
        ),
    )
    used = {"forget_train": len(data.forget), "retain_train": len(data.retain)}
    return judged(task, adapter, used=used, seconds=seconds, gates=gates, provisional=True)
