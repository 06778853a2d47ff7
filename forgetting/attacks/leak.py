"""Run every attack on one model, and compare with a model that never saw the class.

Absolute figures mislead. Embeddings of identities generalise, so a probe finds a person even in a
model that was retrained without that person. What a method leaks is the excess over that reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.attacks.class_membership import class_membership
from forgetting.attacks.finetune import FinetuneConfig, FinetuneCurve, finetune
from forgetting.attacks.head import bare_head, restarted, revived
from forgetting.attacks.layers import LayerConfig, LayerPoint, layers
from forgetting.attacks.likeness import Likeness, likeness
from forgetting.attacks.membership import Separation, membership, stranger_likeness
from forgetting.attacks.probe import ProbeConfig, ProbePoint, probe
from forgetting.attacks.prompt import PromptConfig, PromptPoint, prompted
from forgetting.attacks.prototypes import (
    PrototypeConfig,
    PrototypePoint,
    nearest_mean,
    relearn_by_prototype,
)
from forgetting.attacks.quantised import BITS, QuantisedPoint, attack_by_rounding
from forgetting.attacks.reading import Reading, read_change
from forgetting.attacks.recovery import RecoveryConfig, RecoveryPoint, recovery
from forgetting.attacks.relearn import RelearnConfig, RelearnCurve, relearn
from forgetting.attacks.verification import Verification, verification
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.features import Features, extract, halves, split


@dataclass(frozen=True)
class AttackConfig:
    """The settings of all attacks. Those that train the model's weights or its input, and `layers`,
    may be None to leave them out. `bits` are those of rounded weights; it may be empty."""

    recovery: RecoveryConfig = RecoveryConfig()
    probe: ProbeConfig = ProbeConfig()
    prototypes: PrototypeConfig = PrototypeConfig()
    relearn: RelearnConfig | None = RelearnConfig()
    finetune: FinetuneConfig | None = FinetuneConfig()
    prompt: PromptConfig | None = PromptConfig()
    layers: LayerConfig | None = LayerConfig()
    bits: tuple[int, ...] = BITS


@dataclass(frozen=True)
class LeakFigures:
    """What the attacks found. Every accuracy is plain top-1 over all classes on test images.

    Attributes:
        recovery: Head re-training from the model's own head (masked rows revived), as in the paper.
        recovery_restarted: The same, but the forgotten rows start at the mean of the retained rows.
            A model trained long without a class has pushed the class's row far down. A few hundred
            steps can't lift it, whatever the features hold. So only this start compares features
            with such a reference.
        probe: A fresh head for each number of shots.
        prototypes: A few-shot prototype in the forgotten rows, for each alpha.
        prototypes_fresh: The same with images that the method never saw: half of each class's test
            images, tested on the other half. A closed form leaves nothing in the images that it
            was fitted on. This shows what it leaves in the class.
        nearest_mean: The nearest of all classes' few-shot means.
        relearn: Fine-tuning of all weights; None if it wasn't run.
        finetune: Fine-tuning by several attackers, at fixed numbers of steps.
        prompt: A pattern that is added to every image; None if it wasn't learned.
        layers: A probe and the nearest neighbour at every block's output and at the feature.
        quantised: The model with weights of 8 and of 4 bits.
        verified: Pairs of test images of forgotten identities; None if there are none.
        verified_r: The same of retained ones.
        membership: Forget images that were trained on, against held-out ones.
        strangers: Test images of forgotten classes, against images of classes that no model saw;
            None if there are none.
        class_membership: Deleted classes against classes that no model saw, by the probabilities of
            the neighbours, cross-validated by class; empty if there are too few classes.
        reading: What the change from the backbone tells about who was forgotten; None without the
            backbone.
        likeness: How close the answers are to the reference's; None without a reference.
    """

    recovery: tuple[RecoveryPoint, ...]
    recovery_restarted: tuple[RecoveryPoint, ...]
    probe: tuple[ProbePoint, ...]
    prototypes: tuple[PrototypePoint, ...]
    prototypes_fresh: tuple[PrototypePoint, ...]
    nearest_mean: PrototypePoint
    relearn: RelearnCurve | None
    finetune: tuple[FinetuneCurve, ...]
    prompt: PromptPoint | None
    layers: tuple[LayerPoint, ...]
    quantised: tuple[QuantisedPoint, ...]
    verified: Verification | None
    verified_r: Verification | None
    membership: tuple[Separation, ...]
    strangers: tuple[Separation, ...] | None
    class_membership: tuple[Separation, ...]
    reading: Reading | None
    likeness: Likeness | None


def attack(
    model: nn.Module,
    *,
    train: Samples,
    test: Samples,
    forgotten: Tensor,
    generator: torch.Generator,
    before: float | None = None,
    strangers: Samples | None = None,
    reference: Features | None = None,
    original: Features | None = None,
    config: AttackConfig = AttackConfig(),
) -> LeakFigures:
    """Run every attack on one model.

    To compare models on the same draws, give each a generator in the same state.

    Args:
        model: The model, in eval mode. It isn't changed.
        train: Training images of all classes, the forgotten ones included.
        test: Test images of all classes.
        forgotten: Labels under erasure (k,).
        generator: Source of all randomness.
        before: Acc_f of the backbone on the same test images. The relearn curve needs it.
        strangers: Images of classes that neither this model nor the backbone was trained on. Their
            labels only tell them from each other.
        reference: The test images in the model retrained without the forgotten classes.
        original: The test images in the model that the adapter was learned on.
        config: Settings.

    Raises:
        DataError: A set lacks images of forgotten or of retained classes, or embeddings are not
            finite.
        BackboneError: The model's head is neither linear nor cosine.
    """
    _check(train=train, test=test, forgotten=forgotten)
    inside, outside = extract(model, train), extract(model, test)
    head = revived(bare_head(model), forgotten=forgotten)
    fresh = restarted(head, forgotten=forgotten)
    recovered, recovered_fresh = (
        recovery(
            start,
            train=inside,
            test=outside,
            forgotten=forgotten,
            generator=generator,
            config=config.recovery,
        )
        for start in (head, fresh)
    )
    probed = probe(inside, outside, forgotten=forgotten, generator=generator, config=config.probe)
    written, written_fresh = (
        relearn_by_prototype(
            head,
            train=shown,
            test=asked,
            forgotten=forgotten,
            generator=generator,
            config=config.prototypes,
        )
        for shown, asked in ((inside, outside), halves(outside))
    )
    nearest = nearest_mean(
        inside,
        outside,
        forgotten=forgotten,
        generator=generator,
        shots=config.prototypes.shots,
        draws=config.prototypes.draws,
    )
    depths: tuple[LayerPoint, ...] = ()
    if config.layers is not None:
        depths = layers(
            model,
            train=train,
            test=test,
            forgotten=forgotten,
            generator=generator,
            config=config.layers,
        )
    tuned: tuple[FinetuneCurve, ...] = ()
    if config.finetune is not None:
        tuned = finetune(
            model,
            train=train,
            test=test,
            forgotten=forgotten,
            generator=generator,
            config=config.finetune,
        )
    pattern = None
    if config.prompt is not None:
        pattern = prompted(
            model,
            train=train,
            test=test,
            forgotten=forgotten,
            generator=generator,
            config=config.prompt,
        )
    curve = None
    if config.relearn is not None and before is not None:
        # It draws last, because how much it draws depends on the model.
        curve = relearn(
            model,
            train=train,
            test=test,
            forgotten=forgotten,
            before=before,
            generator=generator,
            config=config.relearn,
        )
    deleted = split(outside, forgotten=forgotten)[0]
    unseen = extract(model, strangers) if strangers is not None and len(strangers) else None
    return LeakFigures(
        recovery=recovered,
        recovery_restarted=recovered_fresh,
        probe=probed,
        prototypes=written,
        prototypes_fresh=written_fresh,
        nearest_mean=nearest,
        relearn=curve,
        finetune=tuned,
        prompt=pattern,
        layers=depths,
        quantised=attack_by_rounding(model, test=test, forgotten=forgotten, bits=config.bits),
        verified=verification(outside, chosen=forgotten),
        verified_r=verification(
            split(outside, forgotten=forgotten)[1],
            chosen=torch.unique(outside.y[~torch.isin(outside.y, forgotten)]),
        ),
        membership=membership(split(inside, forgotten=forgotten)[0], deleted),
        strangers=stranger_likeness(deleted.logits, unseen.logits) if unseen else None,
        class_membership=class_membership(deleted, unseen, forgotten=forgotten) if unseen else (),
        reading=(None if original is None else read_change(original, outside, forgotten=forgotten)),
        likeness=(None if reference is None else likeness(outside, reference, forgotten=forgotten)),
    )


def scalars(figures: LeakFigures) -> dict[str, float]:
    """One number for each figure that was measured.

    A higher number means a bigger leak, except for `relearn_steps`, which is left out if the steps
    ran out first, and for figures of retained classes (`..._r`). Of several alphas or scores the
    attacker's best counts.
    """
    last = figures.recovery[-1]
    found: dict[str, float | None] = {
        "recovery_f": last.acc_f,
        "recovery_r": last.acc_r,
        "recovery_margin_f": last.margin_f,
        "recovery_margin_r": last.margin_r,
        "recovery_restarted_f": figures.recovery_restarted[-1].acc_f,
        "recovery_best_f": max(last.acc_f, figures.recovery_restarted[-1].acc_f),
        **{f"probe_{point.shots or 'all'}_f": point.recall_f for point in figures.probe},
        "prototype_f": max(point.recall_f for point in figures.prototypes),
        "prototype_fresh_f": max(point.recall_f for point in figures.prototypes_fresh),
        "nearest_mean_f": figures.nearest_mean.recall_f,
        "relearn_f": figures.relearn.acc_f[-1] if figures.relearn else None,
        "relearn_steps": figures.relearn.reached if figures.relearn else None,
        **{
            f"{point.scope}_{point.shots}shot_{steps}_f": value
            for point in figures.finetune
            for steps, value in zip(point.steps, point.acc_f, strict=True)
        },
        **{
            f"{point.scope}_retain_only_prototype_f": point.prototype_f
            for point in figures.finetune
            if point.prototype_f is not None
        },
        "prompt_f": figures.prompt.acc_f if figures.prompt else None,
        "prompt_gain_f": figures.prompt.gain_f if figures.prompt else None,
        **{
            f"{name}_{point.depth or 'feature'}_f": value
            for point in figures.layers
            for name, value in (("layer_probe", point.probe), ("layer_1nn", point.neighbour))
        },
        **{f"quantised_{point.bits}_f": point.acc_f for point in figures.quantised},
        "verified_auc_f": figures.verified.auc if figures.verified else None,
        "verified_tar_f": figures.verified.tar if figures.verified else None,
        "verified_rank_1_f": figures.verified.rank_1 if figures.verified else None,
        "verified_auc_r": figures.verified_r.auc if figures.verified_r else None,
        "verified_tar_r": figures.verified_r.tar if figures.verified_r else None,
        "verified_rank_1_r": figures.verified_r.rank_1 if figures.verified_r else None,
        "membership_advantage": max(s.advantage for s in figures.membership),
        "membership_tpr": max(s.tpr for s in figures.membership),
        "js": figures.likeness.js_f if figures.likeness else None,
        "js_r": figures.likeness.js_r if figures.likeness else None,
    }
    if figures.class_membership:
        found["class_membership"] = max(s.auc for s in figures.class_membership)
    if figures.reading is not None:
        found["reading_auc"] = figures.reading.auc
        found["reading_certain"] = figures.reading.certain
    if figures.strangers is not None:
        found["stranger_advantage"] = max(s.advantage for s in figures.strangers)
        found["stranger_tpr"] = max(s.tpr for s in figures.strangers)
    return {name: float(value) for name, value in found.items() if value is not None}


def excess(figures: LeakFigures, reference: LeakFigures) -> dict[str, float]:
    """Each figure minus that of the model that never saw the class, if both have it."""
    own, other = scalars(figures), scalars(reference)
    return {name: value - other[name] for name, value in own.items() if name in other}


def to_json(figures: LeakFigures) -> dict[str, Any]:
    """All curves and points as plain JSON values, together with `scalars`."""
    return {**asdict(figures), "scalars": scalars(figures)}


def _check(*, train: Samples, test: Samples, forgotten: Tensor) -> None:
    for name, samples in (("training", train), ("test", test)):
        gone = int(torch.isin(samples.y, forgotten).sum())
        if gone == 0 or gone == len(samples):
            raise DataError(
                f"the attacks need {name} images of forgotten and of retained classes, found "
                f"{gone} and {len(samples) - gone}"
            )
