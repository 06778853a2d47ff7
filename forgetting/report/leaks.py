"""What attacks win back of a task's classes. The report uses the same code as the benchmark.

An absolute figure means little (see `attacks.leak`), and a server has no model retrained without
the class to compare with. So each figure is set between two others: what the same attack, with the
same draws, wins back from the bare backbone, and chance. A gate limits how far above chance it may
be, as a share of how far the backbone is. The retrained models of the benchmark tell which share is
right.

Only as many images are used as the figures need, so that a report costs a fraction of its task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.attacks.layers import LayerConfig, LayerPoint
from forgetting.attacks.leak import AttackConfig, LeakFigures, attack
from forgetting.attacks.probe import ProbeConfig
from forgetting.attacks.reading import Reading
from forgetting.attacks.recovery import RecoveryConfig
from forgetting.data.image_set import ImageSet, class_index, indices, replay, to_tensors
from forgetting.data.roles import TaskClasses
from forgetting.data.samples import Samples
from forgetting.measure.accuracy import Share
from forgetting.measure.features import extract
from forgetting.models.backbone import Backbone

# Training images of a class: the most that a probe uses. Fewer with hundreds of classes.
MOST_PER_CLASS = 20
LEAST_PER_CLASS = 5
MOST_TRAIN = 2000
# Test images of a retained class. No gate reads their accuracy, so a few will do.
RETAINED_TEST = 2
# The paper's share of all training images; here they are drawn from those in use.
RECOVERY_SHARE = 0.1
# Shots of the probe. Those of the prototypes are `PrototypeConfig.shots`.
SHOTS = (1, 5, 20)
PROBE, PROTOTYPES = "probe_5", "prototypes"
PROBE_LAST, NEIGHBOUR_LAST, NEIGHBOUR = "probe_last_block", "nearest_last_block", "nearest"
VERIFIED = "verification"
# Shots of the probe at every block.
LAYER_SHOTS = 5
# Every model and every task gets the same draws.
_SEED = 3_000_000


@dataclass(frozen=True)
class LeakFigure:
    """What one attack wins back of the forgotten classes.

    Attributes:
        after: Recall of test images after an attack on the adapted model, mean over its draws.
        before: The same after an attack on the bare backbone.
        chance: Recall by guessing.
        n: Number of test images in the figure; 0 if all were shown to the attacker.
    """

    after: float
    before: float
    chance: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the Wilson 95 % interval of `after`, rounded to whole images.

        For verification that is wider than need be: each image is in many pairs.
        """
        return Share(round(self.after * self.n), self.n).interval[0]

    @property
    def kept(self) -> float | None:
        """(after - chance) / (before - chance); None if the backbone itself is at chance."""
        room = self.before - self.chance
        return (self.after - self.chance) / room if room > 0 else None

    def allowed(self, share: float) -> float:
        """chance + share * (before - chance): the limit on `low`."""
        return self.chance + share * max(self.before - self.chance, 0.0)


@dataclass(frozen=True)
class BlockLeak:
    """Recall of forgotten test images at one depth, now and in the bare backbone."""

    after: LayerPoint
    before: LayerPoint


@dataclass(frozen=True)
class Leaks:
    """All leak figures of a task.

    Attributes:
        figures: Figures by name: `recovery`, `probe_1`, `probe_5`, `probe_20`, `prototypes` (on
            images that the method never saw), `nearest` (the nearest training image at the
            feature), `probe_last_block` and `nearest_last_block` (not for a model that can't be
            cut between its blocks), and `verification` (the AUC of pairs of one person against
            pairs of two; only with two images of a class). Empty if the data allow none.
        blocks: A 5-shot probe and the nearest image at every block's output, bottom to top, and at
            the feature: of the adapted model and of the bare backbone.
        membership_auc: 0.5 + |AUC - 0.5| between training and test images of the forgotten
            classes, by the score that separates them best. 0.5 means that none does. None if the
            data allow no figures.
        membership_before: The same for the bare backbone.
        reading: How well this task's adapter, with the model below it and photos, tells which
            classes it was learned to forget; None if the data allow no figures.
        images: Number of training images that the attackers had, forgotten and retained.
        fresh_shots: Images of a class that the prototypes really had, at most 5.
        unmeasurable: Why the data allow no figures, in a sentence; None if they do.
        cpu_seconds: CPU time of this process for all attacks.
    """

    figures: Mapping[str, LeakFigure]
    blocks: tuple[BlockLeak, ...]
    membership_auc: float | None
    membership_before: float | None
    reading: Reading | None
    images: int
    fresh_shots: int
    unmeasurable: str | None
    cpu_seconds: float


def measure_leaks(
    backbone: Backbone,
    model: nn.Module,
    *,
    previous: nn.Module,
    images: ImageSet,
    classes: TaskClasses,
    forget: Samples,
) -> Leaks:
    """Attack the adapted model and the bare backbone on a task's classes.

    Images of classes that earlier tasks forgot are left out. They would outnumber this task's
    images, and hide what is left of its classes.

    Args:
        backbone: The bare backbone.
        model: The model with the stack and this task's adapter.
        previous: The model with the stack below this task.
        images: The image set, labelled by the rows of the backbone's head.
        classes: The role of each class.
        forget: Test images of this task's classes. A class with a single image is left out if
            others have more.

    Raises:
        DataError: An image can't be decoded, or embeddings aren't finite.
        BackboneError: The model's head is neither linear nor cosine.
    """
    began = time.process_time()
    generator = torch.Generator().manual_seed(_SEED)
    names = (*classes.retained, *classes.forget)
    most = max(LEAST_PER_CLASS, min(MOST_PER_CLASS, MOST_TRAIN // len(names)))

    def samples(split: str, chosen: tuple[str, ...], count: int) -> Samples:
        rows = replay(images, per_class=count, generator=generator, classes=chosen, split=split)
        return Samples(*to_tensors(images, rows, backbone.spec.preprocess))

    train = samples("train", names, most)
    retained = samples("test", classes.retained, RETAINED_TEST)
    gone = torch.tensor(sorted(class_index(images, name) for name in classes.under_erasure))
    asked = _in_pairs(forget)
    lacking = _lacking(train, asked=asked, retained=retained, gone=gone)
    if lacking is not None:
        return Leaks(
            figures={},
            blocks=(),
            membership_auc=None,
            membership_before=None,
            reading=None,
            images=len(train),
            fresh_shots=0,
            unmeasurable=lacking,
            cpu_seconds=time.process_time() - began,
        )
    test = Samples(torch.cat([asked.x, retained.x]), torch.cat([asked.y, retained.y]))
    whole = len(indices(images, "train", classes=names))
    config = AttackConfig(
        recovery=RecoveryConfig(share=min(1.0, RECOVERY_SHARE * whole / len(train))),
        probe=ProbeConfig(shots=SHOTS),
        relearn=None,
        finetune=None,
        prompt=None,
        layers=LayerConfig(shots=LAYER_SHOTS),
        bits=(),
    )
    after, before = (
        attack(
            attacked,
            train=train,
            test=test,
            forgotten=gone,
            generator=torch.Generator().manual_seed(_SEED),
            original=below,
            config=config,
        )
        for attacked, below in ((model, extract(previous, test)), (backbone.model, None))
    )
    counts = asked.y.bincount()[torch.unique(asked.y)]
    fresh = int((counts - counts // 2)[counts > 1].sum())
    return Leaks(
        figures={
            name: LeakFigure(
                after=value,
                before=_recalls(before)[name],
                chance=0.5 if name == VERIFIED else 1 / len(names),
                n=fresh if name == PROTOTYPES else len(asked),
            )
            for name, value in _recalls(after).items()
        },
        blocks=tuple(map(BlockLeak, after.layers, before.layers)),
        membership_auc=_told_apart(after),
        membership_before=_told_apart(before),
        reading=after.reading,
        images=len(train),
        fresh_shots=min(config.prototypes.shots, int(counts.max()) // 2),
        unmeasurable=None,
        cpu_seconds=time.process_time() - began,
    )


def _in_pairs(forget: Samples) -> Samples:
    """Leave out classes with a single image, unless all have just one.

    A single image can't be both shown to the attacker and tested.
    """
    chosen = forget.y.bincount()[forget.y] > 1
    return Samples(forget.x[chosen], forget.y[chosen]) if bool(chosen.any()) else forget


def _lacking(train: Samples, *, asked: Samples, retained: Samples, gone: Tensor) -> str | None:
    if len(asked) == 0:
        return "there are no test images of the forgotten classes"
    if len(retained) == 0:
        return "there are no test images of retained classes"
    inside = int(torch.isin(train.y, gone).sum())
    if inside == 0 or inside == len(train):
        return "there are no training images of forgotten or of retained classes"
    return None


def _recalls(found: LeakFigures) -> dict[str, float]:
    *blocks, feature = found.layers
    last = {PROBE_LAST: blocks[-1].probe, NEIGHBOUR_LAST: blocks[-1].neighbour} if blocks else {}
    return {
        "recovery": found.recovery_restarted[-1].acc_f,
        **{f"probe_{point.shots}": point.recall_f for point in found.probe},
        PROTOTYPES: max(point.recall_f for point in found.prototypes_fresh),
        NEIGHBOUR: feature.neighbour,
        **last,
        **({VERIFIED: found.verified.auc} if found.verified else {}),
    }


def _told_apart(found: LeakFigures) -> float:
    return 0.5 + max(score.advantage for score in found.membership)
