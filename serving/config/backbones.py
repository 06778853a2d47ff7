"""Opens the backbone that the settings name, and trains the embedded default at the first start.

The trained default is kept under LETHE_HOME/backbones, in a folder named by a digest of its recipe.
A start finds it there; only a changed recipe is trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from forgetting.data.sources import open_image_set
from forgetting.durable_file import new_folder
from forgetting.models.backbone import Backbone, load_backbone, load_timm, save_backbone
from forgetting.training.pretrain import PretrainConfig, PretrainProgress, pretrain, small_vit
from registry.store.durable_file import make_folder
from registry.store.file_lock import only_writer
from serving.config.home import home_of
from serving.config.settings import DIGITS, Settings

Report = Callable[[PretrainProgress], None]


def open_backbone(settings: Settings) -> Backbone:
    """Load the backbone that the settings name. Trains nothing. Raises `BackboneError`."""
    chosen = settings.backbone
    if chosen.model is not None and chosen.labels is not None:
        return load_timm(
            chosen.model,
            weights=chosen.weights,
            labels=chosen.labels,
            model_args=chosen.model_args,
        )
    return load_backbone(chosen.directory or embedded_folder(settings))


def embedded_folder(settings: Settings) -> Path:
    """The folder of the digits backbone with the current recipe."""
    images = open_image_set(DIGITS)
    recipe = json.dumps(
        [images.manifest_digest, asdict(PretrainConfig()), small_vit(images)[:2]], sort_keys=True
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return home_of(settings).backbones / f"{DIGITS}-{digest}"


def prepare_backbone(settings: Settings, progress: Report) -> None:
    """Train the embedded default, unless it exists already or the settings name another one.

    When several servers start for the first time at once, one trains it and the others wait.

    Raises: OSError.
    """
    if not settings.backbone.embedded:
        return
    folder = embedded_folder(settings)
    if folder.exists():
        return
    make_folder(folder.parent)
    with only_writer(folder):
        if not folder.exists():  # another start may have trained it meanwhile
            trained = pretrain(open_image_set(DIGITS), progress=progress)
            with new_folder(folder) as beside:
                save_backbone(beside, trained.backbone)
