"""The work of `lethe pretrain`: train a backbone from scratch and write it to a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from forgetting.data.sources import open_image_set
from forgetting.models.backbone import save_backbone
from forgetting.training.pretrain import PretrainConfig, PretrainProgress, pretrain
from serving.errors import ServingError


class PretrainingError(ServingError):
    """Nothing was trained; the message says why."""


def read_model_args(text: str) -> dict[str, Any]:
    """The model's arguments from the command line, such as `{"depth": 2}`.

    Raises `PretrainingError` unless `text` is a JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise PretrainingError(f"--model-args {text!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PretrainingError(f"--model-args {text!r} is no object such as '{{\"depth\": 2}}'")
    return found


def pretrain_backbone(
    data: str,
    to: Path,
    *,
    model: str | None,
    model_args: Mapping[str, Any] | None = None,
    steps: int | None,
    seed: int,
    note: Callable[[PretrainProgress], None],
) -> dict[str, Any]:
    """Train on `data` and write the backbone to the folder `to`; return its facts.

    Raises `PretrainingError` when `to` can't be written or holds a backbone already, and
    `ForgettingError`.
    """
    if (to / "backbone.json").exists():
        raise PretrainingError(f"{to} holds a backbone already; choose another --out")
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PretrainingError(f"can't write to {to}: {error.strerror}") from None
    config = PretrainConfig() if steps is None else replace(PretrainConfig(), steps=steps)
    images = open_image_set(data, seed=seed)
    trained = pretrain(
        images, model=model, model_args=model_args, config=config, progress=note, seed=seed
    )
    save_backbone(to, trained.backbone)
    return {
        "out": str(to),
        "classes": len(images.classes),
        "test_accuracy": round(trained.test.value, 4),
        "test_images": trained.test.n,
        "input": trained.chosen,
        "warning": trained.warning,
        "seconds": round(trained.seconds, 1),
        "fingerprint": trained.backbone.fingerprint,
    }
