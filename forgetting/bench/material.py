"""What all methods of one setting and seed share: images, backbone, tasks, references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from forgetting.attacks.prototypes import class_means
from forgetting.bench.backbones import TrainedFacts, given_backbone, trained_backbone
from forgetting.bench.recipes import Recipe
from forgetting.bench.setting import (
    Setting,
    adversarial_order,
    check_images,
    class_order,
    task_classes,
)
from forgetting.data.image_set import ImageSet, class_index, for_classes, indices, to_tensors
from forgetting.data.preprocess import Preprocess
from forgetting.data.roles import Rows, TaskClasses, training_data
from forgetting.data.samples import ForgetData, Samples
from forgetting.data.subset import some_classes
from forgetting.errors import DataError
from forgetting.measure.features import Features, extract
from forgetting.models.backbone import Backbone
from forgetting.models.lite_hybrid import remember_stem
from forgetting.training.pretrain import PretrainProgress

Which = Literal["all", "last", "none"]
# Larger sets are transformed again at every use.
KEEP_BYTES = 4 * 2**30
# This many images of unseen classes are enough to tell how a model answers to strangers.
_MOST_STRANGERS = 500


@dataclass(frozen=True)
class Origin:
    """The source of backbones: `given`, or trained by a recipe and kept in `work`."""

    work: Path
    recipe: Recipe
    given: Path | None = None


@dataclass(frozen=True)
class Material:
    """One setting, one seed.

    Attributes:
        setting: The setting.
        seed: The seed.
        images: Images of the classes that take part. Labels are rows of the backbone's head.
        backbone: The bare backbone.
        facts: How it was trained; None if it was given.
        tasks: Classes by role, for each task.
        samples: Turns positions in `images` into tensors.
        strangers: Test images of classes that no model saw; empty if all classes take part.
        references: By number of the task: the model retrained without what it and the earlier
            tasks forget.
        bare: The backbone's `test_features`.
        never: The `test_features` of the references, by number of the task.
    """

    setting: Setting
    seed: int
    images: ImageSet
    backbone: Backbone
    facts: TrainedFacts | None
    tasks: tuple[TaskClasses, ...]
    samples: Callable[[Rows], Samples] = field(repr=False)
    strangers: Samples = field(repr=False)
    references: Mapping[int, tuple[Backbone, TrainedFacts]]
    bare: Features
    never: Mapping[int, Features]

    def test_features(self, model: nn.Module) -> Features:
        """A model's features of the test images, in order."""
        return extract(model, self.samples(indices(self.images, "test")))


class TensorMemo:
    """Turns positions in an image set into samples. Each image is transformed once and kept."""

    def __init__(self, images: ImageSet, preprocess: Preprocess) -> None:
        self._images, self._preprocess = images, preprocess
        keep = len(images) * math.prod(preprocess.input_size) * 4 <= KEEP_BYTES
        self._x = torch.empty(len(images) if keep else 0, *preprocess.input_size)
        self._known = torch.zeros(len(self._x), dtype=torch.bool)

    def __call__(self, rows: Rows) -> Samples:
        """Samples in the order of `rows`.

        Raises:
            DataError: An image can't be decoded.
        """
        if len(self._x) == 0:
            return Samples(*to_tensors(self._images, rows, self._preprocess))
        chosen = torch.from_numpy(rows)
        new = chosen[~self._known[chosen]]
        if len(new):
            self._x[new] = to_tensors(self._images, new.tolist(), self._preprocess)[0]
            self._known[new] = True
        return Samples(self._x[chosen], torch.from_numpy(self._images.labels[rows]))


def prepare(
    images: ImageSet,
    setting: Setting,
    *,
    seed: int,
    origin: Origin,
    references: Which,
    progress: Callable[[str, PretrainProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Material:
    """Train or load what a seed needs.

    Args:
        images: The whole image set.
        setting: What is forgotten.
        seed: Chooses the classes, their order and the initial weights.
        origin: Source of the backbone.
        references: After which tasks a reference is needed.
        progress: Called with the name of what is trained, and its progress.
        note: Called with a sentence if something kept had to be made again.

    Raises:
        Claimed: Another process is training one of them.
        DataError, BackboneError, TrainingError: See the functions that it calls.
    """
    order = class_order(images.classes, setting, seed=seed)
    chosen = some_classes(images, [name for name in images.classes if name in set(order)])
    check_images(chosen, setting)
    recipe = origin.recipe

    def trained(without: tuple[str, ...]) -> tuple[Backbone, TrainedFacts]:
        what = f"reference without {len(without)} classes" if without else "backbone"

        def tell(look: PretrainProgress) -> None:
            if progress is not None:
                progress(f"{what}, seed {seed}", look)

        return trained_backbone(
            origin.work,
            chosen,
            recipe=recipe,
            seed=seed,
            without=without,
            progress=tell,
            note=note,
        )

    facts: TrainedFacts | None = None
    if origin.given is not None:
        backbone = given_backbone(origin.given, chosen)
        chosen = for_classes(chosen, backbone.spec.classes)
        spec = backbone.spec
        recipe = replace(
            recipe, model=spec.model, model_args=spec.model_args, preprocess=spec.preprocess
        )
    else:
        backbone, facts = trained(())
    samples = TensorMemo(chosen, backbone.spec.preprocess)
    remember_stem(backbone.model)  # all methods work on copies of it
    if setting.order == "adversarial":
        shown = extract(backbone.model, samples(indices(chosen, "train")))
        _, means = class_means(shown.embedding, shown.y)
        order = adversarial_order(order, means[[class_index(chosen, name) for name in order]])
    tasks = task_classes(order, setting)
    wanted = {"all": range(1, len(tasks) + 1), "last": [len(tasks)], "none": []}[references]
    made = {number: trained(tasks[number - 1].under_erasure) for number in wanted}
    for never, _ in made.values():
        remember_stem(never.model)
    tested = samples(indices(chosen, "test"))
    return Material(
        setting=setting,
        seed=seed,
        images=chosen,
        backbone=backbone,
        facts=facts,
        tasks=tasks,
        samples=samples,
        strangers=_strangers(images, chosen, backbone, seed=seed),
        references=made,
        bare=extract(backbone.model, tested),
        never={number: extract(never.model, tested) for number, (never, _) in made.items()},
    )


def forget_data(material: Material, number: int) -> ForgetData:
    """The images of task `number`, the same for every method.

    Raises:
        DataError: A class to forget has no training images.
    """
    classes, shots = material.tasks[number - 1], material.setting.shots
    data = training_data(
        material.images,
        classes,
        samples=material.samples,
        replay_per_class=shots,
        forget_per_class=shots,
        generator=torch.Generator().manual_seed(1000 * material.seed + number),
    )
    if len(data.forget) == 0:
        raise DataError(f"task {number} has no training images to forget")
    return data


def _strangers(images: ImageSet, chosen: ImageSet, backbone: Backbone, *, seed: int) -> Samples:
    others = [name for name in images.classes if name not in set(chosen.classes)]
    rows = indices(images, "test", classes=others)
    if len(rows) > _MOST_STRANGERS:
        drawn = np.random.default_rng(seed).permutation(len(rows))[:_MOST_STRANGERS]
        rows = np.sort(rows[drawn])
    return TensorMemo(images, backbone.spec.preprocess)(rows)
