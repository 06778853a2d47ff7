"""What attacks win back of a task's classes, measured for the report by the benchmark's own code.

Absolute figures mean little (`attacks.leak`), and where a model is served there is none that was
retrained without the class. So each figure stands between two anchors: what the same attack wins
back from the bare backbone, on the same draws, and chance. How far above chance a figure may be
is a share of how far the backbone is; the retrained models of the benchmark say which share.

No more images are used than the figures need, so that a report costs a fraction of its task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.attacks.leak import AttackConfig, LeakFigures, attack
from forgetting.attacks.probe import ProbeConfig
from forgetting.attacks.recovery import RecoveryConfig
from forgetting.data.image_set import ImageSet, class_index, indices, replay, to_tensors
from forgetting.data.roles import TaskClasses
from forgetting.data.samples import Samples
from forgetting.measure.accuracy import Share
from forgetting.models.backbone import Backbone

# Training images of a class: the probe's most. Fewer where there are hundreds of classes.
MOST_PER_CLASS = 20
LEAST_PER_CLASS = 5
MOST_TRAIN = 2000
# Retained test images of a class: they only have to be there, no gate reads their accuracy.
RETAINED_TEST = 2
# As in the paper, of all training images: drawn from those that are used here.
RECOVERY_SHARE = 0.1
# The probe's; the prototypes' are `PrototypeConfig.shots`.
SHOTS = (1, 5, 20)
PROBE, PROTOTYPES = "probe_5", "prototypes"
# The draws are the same for every model and every task.
_SEED = 3_000_000


@dataclass(frozen=True)
class LeakFigure:
    """What one attack wins back of the forgotten classes.

    Attributes:
        after: Recall of test images by the attacked adapted model, mean over the attack's draws.
        before: The same attack on the bare backbone.
        chance: What guessing wins.
        n: Test images that were asked; 0 where there was none beside those that were shown.
    """

    after: float
    before: float
    chance: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the Wilson 95 % interval of `after`, on whole images."""
        return Share(round(self.after * self.n), self.n).interval[0]

    @property
    def kept(self) -> float | None:
        """(after - chance) / (before - chance); None where the backbone itself gives chance."""
        room = self.before - self.chance
        return (self.after - self.chance) / room if room > 0 else None

    def allowed(self, share: float) -> float:
        """chance + share * (before - chance): the limit on `low`."""
        return self.chance + share * max(self.before - self.chance, 0.0)


@dataclass(frozen=True)
class Leaks:
    """All leak figures of a task.

    Attributes:
        figures: By name: `recovery`, `probe_1`, `probe_5`, `probe_20`, `prototypes` (in images
            that the method never saw). Empty where the data allow none.
        membership_auc: 0.5 + |AUC - 0.5| between training and test images of the forgotten
            classes, by the score that tells most; 0.5 is none; None as above.
        membership_before: The same of the bare backbone.
        images: Training images that the attackers had, forgotten and retained.
        fresh_shots: Images of a class that the prototypes really had, at most 5.
        unmeasurable: Why the data allow no figures, in a sentence; None where they do.
        cpu_seconds: Of this process, for all of it.
    """

    figures: Mapping[str, LeakFigure]
    membership_auc: float | None
    membership_before: float | None
    images: int
    fresh_shots: int
    unmeasurable: str | None
    cpu_seconds: float


def measure_leaks(
    backbone: Backbone,
    model: nn.Module,
    *,
    images: ImageSet,
    classes: TaskClasses,
    forget: Samples,
) -> Leaks:
    """Attack the adapted model and the bare backbone on a task's classes.

    Images of classes that were forgotten earlier are left out: their many would hide what is left
    of this task's few.

    Args:
        backbone: The bare one.
        model: With the stack and this task's adapter.
        images: Labelled by the backbone's head.
        classes: Who is who.
        forget: Test images of this task's classes. Classes with a single one are left out where
            others have more.

    Raises:
        DataError: An image can't be decoded, or embeddings are not finite.
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
        return Leaks({}, None, None, len(train), 0, lacking, time.process_time() - began)
    test = Samples(torch.cat([asked.x, retained.x]), torch.cat([asked.y, retained.y]))
    whole = len(indices(images, "train", classes=names))
    config = AttackConfig(
        recovery=RecoveryConfig(share=min(1.0, RECOVERY_SHARE * whole / len(train))),
        probe=ProbeConfig(shots=SHOTS),
        relearn=None,
    )
    after, before = (
        attack(
            attacked,
            train=train,
            test=test,
            forgotten=gone,
            generator=torch.Generator().manual_seed(_SEED),
            config=config,
        )
        for attacked in (model, backbone.model)
    )
    counts = asked.y.bincount()[torch.unique(asked.y)]
    fresh = int((counts - counts // 2)[counts > 1].sum())
    return Leaks(
        figures={
            name: LeakFigure(
                after=value,
                before=_recalls(before)[name],
                chance=1 / len(names),
                n=fresh if name == PROTOTYPES else len(asked),
            )
            for name, value in _recalls(after).items()
        },
        membership_auc=_told_apart(after),
        membership_before=_told_apart(before),
        images=len(train),
        fresh_shots=min(config.prototypes.shots, int(counts.max()) // 2),
        unmeasurable=None,
        cpu_seconds=time.process_time() - began,
    )


def _in_pairs(forget: Samples) -> Samples:
    """Without classes of a single image, which can't be both shown and asked; all if none is."""
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
    return {
        "recovery": found.recovery_restarted[-1].acc_f,
        **{f"probe_{point.shots}": point.recall_f for point in found.probe},
        PROTOTYPES: max(point.recall_f for point in found.prototypes_fresh),
    }


def _told_apart(found: LeakFigures) -> float:
    return 0.5 + max(score.advantage for score in found.membership)
