"""Backbones and retrained references, trained once and kept in a folder.

A reference is trained by the backbone's recipe, from the same initial weights, but without the
images of the forgotten classes. It is the model that never saw them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetting.bench.claim import claim
from forgetting.bench.recipes import Recipe
from forgetting.data.image_set import ImageSet
from forgetting.data.subset import without_classes
from forgetting.durable_file import new_folder, replace_file
from forgetting.errors import BackboneError, ForgettingError
from forgetting.models.backbone import Backbone, load_backbone, save_backbone
from forgetting.training.pretrain import PretrainProgress, pretrain

_FACTS_FILE = "trained.json"


@dataclass(frozen=True)
class TrainedFacts:
    """Facts about a training. `test_accuracy` is plain, over the classes that were trained on."""

    test_accuracy: float
    steps: int
    cpu_seconds: float


def backbone_folder(
    work: Path, images: ImageSet, *, recipe: Recipe, seed: int, without: Sequence[str] = ()
) -> Path:
    """The backbone's folder: a readable name, and a digest of all that determines the backbone."""
    facts = [images.manifest_digest, images.classes, recipe.describe(), seed, sorted(without)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{images.name}-{len(images.classes)}-seed{seed}"
    name += f"-without{len(without)}" if without else ""
    return work / "backbones" / f"{name}-{digest}"


def trained_backbone(
    work: Path,
    images: ImageSet,
    *,
    recipe: Recipe,
    seed: int,
    without: Sequence[str] = (),
    progress: Callable[[PretrainProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Backbone, TrainedFacts]:
    """The kept backbone, or a new one.

    Args:
        work: The folder that keeps backbones.
        images: The image set. The backbone is trained on its train split; its classes become the
            head's rows.
        recipe: How to train.
        seed: Seed of the initial weights, the order and the augmentation.
        without: Classes whose images are left out. They keep their rows of the head.
        progress: Called with the progress of the training, if there is one.
        note: Called with a sentence if a kept backbone is damaged and is trained again.

    Raises:
        Claimed: Another process is training it.
        TrainingError, BackboneError, DataError: See `pretrain`.
    """
    folder = backbone_folder(work, images, recipe=recipe, seed=seed, without=without)
    if folder.exists():
        try:
            return _load(folder)
        except (ForgettingError, OSError, ValueError, TypeError) as error:
            if note is not None:
                note(f"the kept backbone {folder.name} is damaged and is trained anew ({error})")
    with claim(folder):
        if folder.exists():
            try:
                return _load(folder)  # another process has made it while it held the claim
            except (ForgettingError, OSError, ValueError, TypeError):
                shutil.rmtree(folder)
        seen = without_classes(images, without) if without else images
        began = time.process_time()
        trained = pretrain(
            seen,
            model=recipe.model,
            model_args=recipe.model_args,
            preprocess=recipe.preprocess,
            config=recipe.config,
            progress=progress,
            seed=seed,
        )
        facts = TrainedFacts(trained.test.value, trained.steps, time.process_time() - began)
        _save(folder, trained.backbone, facts)
        return trained.backbone, facts


def _load(folder: Path) -> tuple[Backbone, TrainedFacts]:
    facts = TrainedFacts(**json.loads((folder / _FACTS_FILE).read_text()))
    return load_backbone(folder), facts


def _save(folder: Path, backbone: Backbone, facts: TrainedFacts) -> None:
    """Save under another name and rename, so that a run cut off leaves no half-made backbone."""
    with new_folder(folder) as beside:
        save_backbone(beside, backbone)
        replace_file(beside / _FACTS_FILE, json.dumps(facts.__dict__).encode())


def given_backbone(directory: Path, images: ImageSet) -> Backbone:
    """A backbone that the user gives.

    Raises:
        BackboneError: It can't be loaded, or its classes aren't those of the images.
    """
    backbone = load_backbone(directory)
    if set(backbone.spec.classes) != set(images.classes):
        raise BackboneError(
            f"{directory} has {len(backbone.spec.classes)} classes and {images.name} has "
            f"{len(images.classes)}, or their names differ; the sub-folders must bear the "
            "backbone's class names"
        )
    return backbone
