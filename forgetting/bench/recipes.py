"""How the benchmark's backbones are trained, by data set. Tune here.

A recipe trains the backbone and, from the same first weights without the forgotten classes, the
references that every leak figure is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from forgetting.augment import Augmentation
from forgetting.backbone import Preprocess
from forgetting.errors import DataError
from forgetting.pretrain import PretrainConfig


@dataclass(frozen=True)
class Recipe:
    """Attributes: as the arguments of `forgetting.pretrain.pretrain`."""

    config: PretrainConfig = PretrainConfig()
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Preprocess | None = None

    def describe(self) -> dict[str, Any]:
        """All that determines the weights beside images and seed, JSON-able."""
        return asdict(self)


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(PretrainConfig(steps=800, batch=64, peak_rate=1e-3)),
    "faces_orl40": Recipe(PretrainConfig(steps=600, batch=64, peak_rate=1e-3)),
    "omniglot": Recipe(
        PretrainConfig(
            steps=4000,
            batch=64,
            peak_rate=1.5e-3,
            augmentation=Augmentation(rotation=12, scale=0.15, shift=0.08),
        )
    ),
    "default": Recipe(),
}
# By the name of the image set, where it isn't the recipe's own.
_BY_DATA: Mapping[str, str] = {"omniglot_small": "omniglot"}


def recipe_for(data: str, *, name: str | None = None, steps: int | None = None) -> Recipe:
    """The recipe called `name`, or the one for the image set `data`, or the default.

    Args:
        data: Name of the image set.
        name: Name of a recipe; None chooses by `data`.
        steps: Instead of the recipe's own number of steps.

    Raises:
        DataError: No such recipe, or no steps at all.
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
