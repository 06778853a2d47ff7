"""The closed form as a method (`forgetting.erasure.leace`). It needs seconds, and no gradients.

It uses only statistics of the retain images. A server keeps those for its backbone. Here they are
computed again for every task, and their forward pass is part of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from forgetting.erasure.edit import check_room, composed, install_edit, installed_edit
from forgetting.erasure.leace import MARGIN, SHRINKAGE, fit_edit
from forgetting.erasure.statistics import feature_statistics
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class ClosedForm:
    """Erase the forgotten classes' subspace from the feature, after the edits of earlier tasks.

    Attributes:
        shrinkage: How far the features' covariance is shrunk to a multiple of the identity, (0, 1].
        margin: How many standard deviations a forgotten row stays below the best other row.
    """

    name: ClassVar[str] = "project"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ({"shrinkage": 0.001}, {"shrinkage": 0.1})

    shrinkage: float = SHRINKAGE
    margin: float = MARGIN

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Uses neither budget nor generator.

        Raises:
            TrainingError: There are too many classes for the feature's width, there is no
                difference to erase, or there are no images.
            TargetError: The model has no `head_drop`, or a head that is neither linear nor cosine.
        """
        watch = Watch(task.data, progress, phase=self.name)
        check_images(task.data)
        model: Any = copy.deepcopy(task.model).requires_grad_(False).eval()
        forget = feature_statistics(model, task.data.forget)
        gone = set(task.data.forgotten.tolist())
        check_room(model, classes=len(forget.labels))
        erasure = fit_edit(
            feature_statistics(model, task.data.retain),
            forget,
            head=model.get_classifier(),
            earlier=sorted(gone - set(forget.labels)),
            shrinkage=self.shrinkage,
            margin=self.margin,
        )
        install_edit(model, composed([erasure], below=installed_edit(model)))
        seconds = watch.cpu_seconds
        nothing = torch.zeros(())
        watch.after(1, model, steps=1, forget=nothing, retain=nothing)
        return Learned(
            model=model, trainable=0, stored=erasure.stored, steps=0, cpu_seconds=seconds
        )
