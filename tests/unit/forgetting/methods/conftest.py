"""Two tasks: one on random images, and one on digits, whose model recognises its images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from forgetting.data.image_set import ImageSet, class_index, indices, replay, to_tensors
from forgetting.data.samples import ForgetData, Samples
from forgetting.methods.protocol import Task
from forgetting.models.backbone import Backbone, features_and_logits
from forgetting.models.face_transformer import CosineHead

GONE = ("0", "1")


@pytest.fixture
def noise_task(untrained: Callable[..., Backbone]) -> Callable[..., Task]:
    """Makes a task that forgets classes 4 and 5 of 6, with random weights and images."""

    def make(*, depth: int = 4) -> Task:
        model = untrained(classes=6, depth=depth).model
        generator = torch.Generator().manual_seed(7)

        def samples(*labels: int) -> Samples:
            y = torch.tensor(labels).repeat(3)
            return Samples(torch.randn(len(y), 1, 8, 8, generator=generator), y)

        data = ForgetData(
            forget=samples(4, 5),
            retain=samples(0, 1, 2, 3),
            earlier=samples(),
            val_forget=samples(4, 5),
            val_retain=samples(0, 1, 2, 3),
            forgotten=torch.tensor([4, 5]),
        )
        return Task(original=model, model=model, data=data)

    return make


@pytest.fixture(scope="session")
def digits_task(digit_images: ImageSet, backbone: Backbone) -> Task:
    """A task that forgets 0 and 1, on a backbone that recognises them."""
    generator = torch.Generator().manual_seed(0)
    kept = [name for name in digit_images.classes if name not in GONE]

    def samples(classes: list[str], split: str, count: int) -> Samples:
        rows = replay(
            digit_images, per_class=count, generator=generator, classes=classes, split=split
        )
        return Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))

    assert len(indices(digit_images, "train", classes=GONE)) > 40
    data = ForgetData(
        forget=samples(list(GONE), "train", 20),
        retain=samples(kept, "train", 12),
        earlier=samples([], "train", 0),
        val_forget=samples(list(GONE), "val", 100),  # all that there are
        val_retain=samples(kept, "val", 100),
        forgotten=torch.tensor([class_index(digit_images, name) for name in GONE]),
    )
    return Task(original=backbone.model, model=backbone.model, data=data)


@pytest.fixture(scope="session")
def cosine_task(digits_task: Task) -> Task:
    """The same task with a cosine head, whose rows are the classes' mean directions."""
    model: Any = copy.deepcopy(digits_task.model)
    data = digits_task.data
    with torch.no_grad():
        x, y = torch.cat([data.forget.x, data.retain.x]), torch.cat([data.forget.y, data.retain.y])
        unit = F.normalize(features_and_logits(model, x)[0], dim=1)
        head = CosineHead(unit.shape[1], 10, scale=16.0, margin=0.1)
        head.weight.copy_(torch.stack([unit[y == label].mean(dim=0) for label in range(10)]))
    model.head = head.requires_grad_(False)
    return replace(digits_task, original=model, model=model)
