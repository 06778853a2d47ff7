"""How the benchmark's backbones are trained, by data set. Tune here.

A recipe trains the backbone. It also trains the references for the leak figures: from the same
initial weights, but without the forgotten classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from forgetting.data.augment import Augmentation
from forgetting.data.preprocess import Preprocess
from forgetting.errors import DataError
from forgetting.models.face_transformer import NAME
from forgetting.models.lite_hybrid import NAME as HYBRID
from forgetting.training.pretrain import PretrainConfig


@dataclass(frozen=True)
class Recipe:
    """Arguments of `forgetting.training.pretrain.pretrain`."""

    config: PretrainConfig = PretrainConfig()
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Preprocess | None = None

    def describe(self) -> dict[str, Any]:
        """All that determines the weights, apart from images and seed, as JSON values."""
        return asdict(self)


def _small_face_transformer(*, steps: int, augmentation: Augmentation, width: int = 128) -> Recipe:
    """The papers' backbone (CosFace head, dropout 0.1) at 32 pixels: 16 tokens, 1.2 M parameters.

    Pre-training runs without dropout, which would take two fifths of the time and gain nothing
    here. The model still has it, for methods that train with it, as the published code does.
    """
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": width, "depth": 6, "num_heads": 4}
    preprocess = Preprocess((1, 32, 32), (0.1,), (0.3,), "bilinear", crop_mode="squash")
    config = PretrainConfig(
        steps=steps, peak_rate=2e-3, dropout=False, clip=1.0, augmentation=augmentation
    )
    return Recipe(config, NAME, arguments, preprocess)


def _photos_over_imagenet() -> Recipe:
    """A ViT of 1.2 M parameters over a frozen ImageNet stem: 36 tokens of 32-pixel photos.

    10,000 photos are too few for a ViT from scratch. The stem (6 stages of EfficientNet-Lite0,
    at 192 pixels) never changes, so that the reference without the forgotten classes has the same.
    """
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    config = PretrainConfig(
        steps=2000,
        smoothing=0.1,
        clip=1.0,
        augmentation=Augmentation(rotation=8, scale=0.12, shift=0.1, flip=True),
    )
    return Recipe(config, HYBRID, {"img_size": 32}, Preprocess((3, 32, 32), mean, std))


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(),
    "faces_orl40": _small_face_transformer(steps=600, augmentation=Augmentation(flip=True)),
    "omniglot": _small_face_transformer(
        steps=1500, augmentation=Augmentation(rotation=15, scale=0.2, shift=0.1)
    ),
    # Many classes in narrow features: `--recipe omniglot_narrow --classes 200`.
    "omniglot_narrow": _small_face_transformer(
        steps=1500, augmentation=Augmentation(rotation=15, scale=0.2, shift=0.1), width=64
    ),
    "cifar10": _photos_over_imagenet(),
    "default": Recipe(),
}
# The recipe of an image set whose name isn't that of its recipe.
_BY_DATA: Mapping[str, str] = {"omniglot_small": "omniglot"}


def recipe_for(data: str, *, name: str | None = None, steps: int | None = None) -> Recipe:
    """The recipe called `name`, or the one for the image set `data`, or the default.

    Args:
        data: Name of the image set.
        name: Name of a recipe; None chooses by `data`.
        steps: Number of steps; None takes the recipe's.

    Raises:
        DataError: There is no such recipe, or `steps` is below 1.
    """
    if name is not None and name not in RECIPES:
        raise DataError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    chosen = name or _BY_DATA.get(data, data)
    recipe = RECIPES.get(chosen, RECIPES["default"])
    if steps is None:
        return recipe
    if steps < 1:
        raise DataError(f"expected at least 1 step of pre-training, found {steps}")
    return replace(recipe, config=replace(recipe.config, steps=steps))
