from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from forgetting.attacks.finetune import FinetuneConfig
from forgetting.attacks.leak import (
    AttackConfig,
    LeakFigures,
    attack,
    excess,
    scalars,
    to_json,
)
from forgetting.attacks.membership import Separation
from forgetting.attacks.prompt import PromptConfig
from forgetting.attacks.recovery import RecoveryConfig, RecoveryPoint
from forgetting.attacks.relearn import RelearnConfig
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.features import extract
from forgetting.models.backbone import Backbone

GONE = torch.tensor([0, 3])
QUICK = AttackConfig(
    recovery=RecoveryConfig(epochs=2, looks=(1,)),
    relearn=RelearnConfig(looks=(0, 1)),
    finetune=FinetuneConfig(scopes=("last_block",), looks=(1,)),
    prompt=PromptConfig(steps=2),
)


def images(n: int, *, seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    x = torch.randn(n, 1, 8, 8, generator=generator) + y[:, None, None, None]
    return Samples(x, y)


@pytest.fixture
def make(untrained: Callable[..., Backbone]) -> Callable[..., LeakFigures]:
    def figures(*, seed: int = 0, reference: bool = True, strangers: bool = True) -> LeakFigures:
        other = extract(untrained(seed=1).model, images(20, seed=1))
        return attack(
            untrained(seed=seed).model,
            train=images(40, seed=0),
            test=images(20, seed=1),
            forgotten=GONE,
            generator=torch.Generator().manual_seed(0),
            before=1.0,
            strangers=images(12, seed=2) if strangers else None,
            reference=other if reference else None,
            original=other if reference else None,
            config=QUICK,
        )

    return figures


def test_same_generator_state_gives_the_same_figures(make: Callable[..., LeakFigures]) -> None:
    assert make() == make()


def test_figures_are_plain_json_and_every_scalar_is_a_finite_number(
    make: Callable[..., LeakFigures],
) -> None:
    found = json.loads(json.dumps(to_json(make()), allow_nan=False))
    assert set(found["scalars"]) == {
        "recovery_f",
        "recovery_r",
        "recovery_restarted_f",
        "recovery_best_f",
        "probe_1_f",
        "probe_5_f",
        "probe_20_f",
        "probe_all_f",
        "prototype_f",
        "prototype_fresh_f",
        "nearest_mean_f",
        "relearn_f",
        "last_block_5shot_1_f",
        "last_block_0shot_1_f",
        "last_block_retain_only_prototype_f",
        "prompt_f",
        "prompt_gain_f",
        *(f"layer_{name}_{depth}_f" for name in ("probe", "1nn") for depth in (1, 2, 3, "feature")),
        "quantised_8_f",
        "quantised_4_f",
        "verified_auc_f",
        "verified_auc_r",
        "verified_rank_1_f",
        "verified_rank_1_r",
        "membership_advantage",
        "membership_tpr",
        "stranger_advantage",
        "stranger_tpr",
        "reading_auc",
        "reading_certain",
        "js",
        "js_r",
    }


def test_what_was_not_measured_is_left_out(make: Callable[..., LeakFigures]) -> None:
    found = scalars(make(reference=False, strangers=False))
    assert not {"js", "js_r", "reading_auc", "class_membership"} & set(found)
    assert "stranger_advantage" not in found


def test_excess_over_itself_is_nothing_and_over_another_the_difference(
    make: Callable[..., LeakFigures],
) -> None:
    one, other = make(), make(seed=1)
    assert set(excess(one, one).values()) == {0.0}
    found = excess(one, other)
    assert found["probe_5_f"] == scalars(one)["probe_5_f"] - scalars(other)["probe_5_f"]
    assert found["js"] == scalars(one)["js"] > 0  # the other model is the reference itself


def test_attacker_has_the_best_of_several_scores_and_the_last_of_a_curve(
    make: Callable[..., LeakFigures],
) -> None:
    points = tuple(RecoveryPoint(e, a, 0.9, a / 2, 0.8) for e, a in ((0, 0.7), (50, 0.4)))
    separated = (Separation("loss", 0.6, 0.1), Separation("entropy", 0.1, 0.05))
    found = scalars(replace(make(), recovery=points, membership=separated))
    assert (found["recovery_f"], found["recovery_margin_f"]) == (0.4, 0.2)
    assert found["membership_advantage"] == pytest.approx(0.4)
    assert found["membership_tpr"] == 0.1


def test_no_relearn_curve_without_the_accuracy_before(untrained: Callable[..., Backbone]) -> None:
    found = attack(
        untrained().model,
        train=images(40, seed=0),
        test=images(20, seed=1),
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=QUICK,
    )
    assert found.relearn is None


def test_sets_without_forget_or_retain_images_are_refused(
    untrained: Callable[..., Backbone],
) -> None:
    whole = images(40, seed=0)
    for forgotten, count in (([7], "0 and 40"), ([0, 1, 2, 3], "40 and 0")):
        with pytest.raises(DataError, match=f"training images .* found {count}"):
            attack(
                untrained().model,
                train=whole,
                test=whole,
                forgotten=torch.tensor(forgotten),
                generator=torch.Generator(),
            )
