"""Every attack must rank models as they are: bare, masked, edited, adapted, retrained.

The edited one has a closed form at the feature and nothing else. With the edit taken out it is the
bare model, so it must fail every attack.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from forgetting.attacks.finetune import SCOPES, FinetuneConfig, FinetuneCurve, finetune, recall
from forgetting.attacks.layers import layers
from forgetting.attacks.likeness import Likeness, likeness
from forgetting.attacks.prompt import PromptPoint, prompted
from forgetting.attacks.reading import read_change
from forgetting.attacks.verification import verification
from forgetting.data.image_set import ImageSet, class_index, indices, to_tensors
from forgetting.data.roles import TaskClasses, training_data
from forgetting.data.samples import Samples
from forgetting.data.subset import without_classes
from forgetting.erasure.edit import installed_edit, without_edit
from forgetting.errors import DataError
from forgetting.measure.features import extract
from forgetting.methods import method
from forgetting.methods.head_mask import mask
from forgetting.methods.protocol import Budget, Task
from forgetting.models.backbone import Backbone
from forgetting.training.pretrain import pretrain
from tests.unit.forgetting.conftest import CONFIG, small_arguments

FORGET = ("3", "7")
STEPS = 30
QUICK = FinetuneConfig(looks=(STEPS,))


@dataclass(frozen=True)
class Models:
    """All are answers to the same request."""

    bare: nn.Module
    masked: nn.Module
    edited: nn.Module
    adapted: nn.Module
    retrained: nn.Module
    train: Samples
    test: Samples
    gone: torch.Tensor

    @property
    def ranked(self) -> tuple[nn.Module, ...]:
        """Bare, masked, edited with the edit taken out, adapted, retrained."""
        stripped = without_edit(self.edited)
        return (self.bare, self.masked, stripped, self.adapted, self.retrained)


@pytest.fixture(scope="module")
def models(digit_images: ImageSet, backbone: Backbone) -> Models:
    def samples(rows: Any) -> Samples:
        return Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))

    kept = tuple(name for name in digit_images.classes if name not in FORGET)
    data = training_data(
        digit_images,
        TaskClasses(kept, FORGET, ()),
        samples=samples,
        replay_per_class=40,
        forget_per_class=40,
        generator=torch.Generator().manual_seed(0),
    )
    task = Task(original=backbone.model, model=backbone.model, data=data)
    learned = {
        name: method(name)
        .learn(task, budget=Budget(), generator=torch.Generator().manual_seed(1))
        .model
        for name in ("project", "lethe")
    }
    masked = copy.deepcopy(backbone.model)
    gone = torch.tensor([class_index(digit_images, name) for name in FORGET])
    mask(masked, gone)
    seen = without_classes(digit_images, FORGET)
    retrained = pretrain(seen, model_args=small_arguments(digit_images), config=CONFIG, seed=0)
    return Models(
        bare=backbone.model,
        masked=masked,
        edited=learned["project"],
        adapted=learned["lethe"],
        retrained=retrained.backbone.model,
        train=samples(indices(digit_images, "train")[:500]),
        test=samples(indices(digit_images, "test")),
        gone=gone,
    )


def _acc_f(models: Models, model: nn.Module) -> float:
    found = extract(model, models.test)
    asked = torch.isin(found.y, models.gone)
    return float((found.logits.argmax(dim=1) == found.y)[asked].float().mean())


def _tuned(models: Models, model: nn.Module, scope: str, shots: int) -> float:
    found = recall(_curves(models, model, scope, shots), scope, shots, STEPS)  # type: ignore[arg-type]
    assert found is not None
    return found


def _curves(models: Models, model: nn.Module, scope: str, shots: int) -> tuple[FinetuneCurve, ...]:
    return finetune(
        model,
        train=models.train,
        test=models.test,
        forgotten=models.gone,
        generator=torch.Generator().manual_seed(0),
        config=FinetuneConfig(scopes=(scope,), shots=(shots,), looks=(STEPS,)),  # type: ignore[arg-type]
    )


def test_edit_taken_out_leaves_the_bare_model(models: Models) -> None:
    assert installed_edit(models.edited) is not None
    assert _acc_f(models, models.edited) <= 0.05
    stripped = without_edit(models.edited)
    assert installed_edit(models.edited) is not None  # the model that was given keeps its own
    assert _acc_f(models, stripped) == _acc_f(models, models.bare) > 0.8
    assert _acc_f(models, without_edit(models.adapted)) <= 0.1


@pytest.mark.parametrize("scope", SCOPES)
def test_fine_tuning_ranks_the_models(models: Models, scope: str) -> None:
    bare, masked, stripped, adapted, retrained = (
        _tuned(models, model, scope, 5) for model in models.ranked
    )
    assert bare > 0.6
    assert masked > 0.5
    assert stripped == bare
    assert adapted < bare
    assert retrained < bare


@pytest.mark.parametrize("scope", ["last_block", "all"])
def test_without_one_forget_image_only_what_was_hidden_comes_back(
    models: Models, scope: str
) -> None:
    bare, stripped, adapted, retrained = (
        _tuned(models, model, scope, 0)
        for model in (models.bare, without_edit(models.edited), models.adapted, models.retrained)
    )
    assert bare > 0.4
    assert stripped == bare
    assert adapted <= 0.1
    assert retrained <= 0.1


def test_a_mask_does_not_stand_retain_only_and_prototypes(models: Models) -> None:
    def written(model: nn.Module) -> float:
        (curve,) = _curves(models, model, "last_block", 0)
        assert curve.prototype_f is not None
        return curve.prototype_f

    bare, masked, stripped, adapted, retrained = map(
        written,
        models.ranked,
    )
    assert masked == pytest.approx(bare, abs=0.1)
    assert bare == stripped > 0.6
    assert adapted < bare - 0.1
    assert retrained < bare - 0.1


def test_a_visual_prompt_ranks_the_models(models: Models) -> None:
    def point(model: nn.Module) -> PromptPoint:
        return prompted(
            model,
            train=models.train,
            test=models.test,
            forgotten=models.gone,
            generator=torch.Generator().manual_seed(0),
        )

    bare, masked, stripped, adapted, retrained = map(
        point,
        models.ranked,
    )
    assert stripped == bare
    assert bare.acc_f > 0.7
    assert masked.acc_f > 0.6
    assert adapted.acc_f < bare.acc_f - 0.1
    assert retrained.acc_f < bare.acc_f - 0.2
    assert adapted.gain_f == adapted.acc_f - adapted.shuffled_f


def test_the_change_tells_who_was_forgotten(models: Models) -> None:
    before = extract(models.bare, models.test)
    nothing, masked, adapted = (
        read_change(before, extract(model, models.test), forgotten=models.gone)
        for model in (models.bare, models.masked, models.adapted)
    )
    assert nothing is not None
    assert (nothing.auc, nothing.certain) == (0.5, 0.0)
    assert masked is not None
    assert masked.auc == 1.0
    assert adapted is not None
    assert adapted.certain == 1.0
    assert (adapted.forgotten, adapted.candidates) == (2, 10)


def test_only_the_retrained_model_is_like_itself(models: Models) -> None:
    never = extract(models.retrained, models.test)
    found = {
        name: likeness(extract(model, models.test), never, forgotten=models.gone)
        for name, model in vars(models).items()
        if name in ("bare", "masked", "retrained")
    }
    assert found["retrained"] == Likeness(js_f=0.0, js_r=0.0, same_f=1.0, same_r=1.0)
    assert found["bare"].js_f > found["masked"].js_f > 0.05
    assert found["bare"].same_f < 0.1 < found["masked"].same_f
    assert found["bare"].same_r > 0.7


def test_an_edit_hides_a_class_at_the_feature_and_one_block_below_it_is_there(
    models: Models,
) -> None:
    def read(model: nn.Module) -> dict[int | None, tuple[float, float]]:
        points = layers(
            model,
            train=models.train,
            test=models.test,
            forgotten=models.gone,
            generator=torch.Generator().manual_seed(0),
        )
        assert [point.depth for point in points] == [1, 2, 3, 4, None]
        return {point.depth: (point.probe, point.neighbour) for point in points}

    bare, edited, adapted = map(read, (models.bare, models.edited, models.adapted))
    assert edited[None][0] < bare[None][0] - 0.2
    assert edited[4] == bare[4]
    assert adapted[4][0] < bare[4][0]
    assert adapted[None][0] < bare[None][0]


def test_pairs_of_a_forgotten_class_match_less(models: Models) -> None:
    def verified(model: nn.Module) -> float:
        found = verification(extract(model, models.test), chosen=models.gone)
        assert found is not None
        assert found.impostor > 1000
        assert found.tar is not None
        return found.auc

    bare, stripped, adapted = (
        verified(model) for model in (models.bare, without_edit(models.edited), models.adapted)
    )
    assert stripped == bare > 0.8
    assert adapted < bare - 0.05


def test_sets_without_forget_or_retain_images_are_refused(models: Models) -> None:
    with pytest.raises(DataError, match="fine-tuning needs training images"):
        finetune(
            models.bare,
            train=models.train,
            test=models.test,
            forgotten=torch.tensor([99]),
            generator=torch.Generator(),
            config=QUICK,
        )
