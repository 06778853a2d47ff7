"""Measure what a task did to the test images. Only this part of the product reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from forgetting.adapter.low_rank import AnyAdapter
from forgetting.attacks.head import bare_head, margin_logits
from forgetting.data.image_set import ImageSet, class_index, indices, to_tensors
from forgetting.data.roles import TaskClasses
from forgetting.data.samples import Samples
from forgetting.measure.accuracy import Share, by_class, most_hit, predict, right
from forgetting.measure.calibration import ece
from forgetting.models.backbone import Backbone
from forgetting.models.face_transformer import CosineHead
from forgetting.report.figures import Report
from forgetting.report.leaks import Leaks, measure_leaks
from forgetting.training.losses import own_distribution

# How many retained classes count as near to one forgotten class.
NEAREST = 3
# An answer with this probability is a sighting of a class, as it is for the live monitor.
_CONFIDENT = 0.5


@dataclass(frozen=True)
class Models:
    """The models to compare.

    Attributes:
        backbone: The bare backbone.
        previous: With the stack below this task, as served.
        after: With this task's adapter too, as served.
        weights: Like `after`, with every feature edit taken out; the same object as `after` if
            there is no edit.
    """

    backbone: Backbone
    previous: nn.Module
    after: nn.Module
    weights: nn.Module


@dataclass(frozen=True)
class Cost:
    """What the task took.

    Attributes:
        images: Number of training and validation images by use.
        adapter_bytes: Size of the adapter's files.
        seconds: Time of the training.
    """

    images: Mapping[str, int]
    adapter_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Answers:
    """Logits (n, classes) of the models on the same images, and their labels (n,)."""

    y: Tensor = field(repr=False)
    bare: Tensor = field(repr=False)
    previous: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def of(self, labels: Tensor) -> _Answers:
        """Only the rows of these labels (k,)."""
        chosen = torch.isin(self.y, labels)
        return _Answers(
            self.y[chosen],
            self.bare[chosen],
            self.previous[chosen],
            self.after[chosen],
            self.weights[chosen],
        )

    def shares(self) -> _Shares:
        """The accuracies of the models."""
        return _Shares(
            right(self.bare, self.y),
            right(self.previous, self.y),
            right(self.after, self.y),
            right(self.weights, self.y),
        )


@dataclass(frozen=True)
class _Shares:
    bare: Share
    previous: Share
    after: Share
    weights: Share


def measure_task(
    models: Models,
    adapter: AnyAdapter,
    *,
    images: ImageSet,
    classes: TaskClasses,
    subjects: Mapping[str, str],
    cost: Cost,
) -> Report:
    """Measure everything in the report.

    Args:
        models: The models to compare.
        adapter: This task's adapter.
        images: The image set, labelled by the rows of the backbone's head.
        classes: The role of each class.
        subjects: Subject id of every class of this task and of earlier ones.
        cost: What the task took.

    Raises:
        DataError: An image can't be decoded, or embeddings aren't finite.
        BackboneError: The model's head is neither linear nor cosine.
    """
    spec = models.backbone.spec

    def rows(names: Sequence[str]) -> Tensor:
        return torch.tensor([class_index(images, name) for name in names], dtype=torch.int64)

    def read(names: Sequence[str]) -> tuple[Samples, _Answers]:
        chosen = indices(images, "test", classes=names)
        samples = Samples(*to_tensors(images, chosen, spec.preprocess))
        return samples, _answers(models, samples, classes=len(spec.classes))

    def leaks(model: nn.Module) -> Leaks:
        return measure_leaks(
            models.backbone,
            model,
            previous=models.previous,
            images=images,
            classes=classes,
            forget=forget_images,
        )

    head = bare_head(models.backbone.model)
    _, retained = read(classes.retained)
    forget_images, forget = read(classes.forget)
    _, earlier = read(classes.earlier)
    gone = rows(classes.under_erasure).sort().values
    masked = own_distribution(forget.bare, forgotten=gone)
    near = retained.of(nearest(masked, forget.y))
    missing = retained.of(rows(classes.missing))
    under_erasure = [forget, earlier]
    acc_r, acc_f, acc_o = retained.shares(), forget.shares(), earlier.shares()
    near_r, acc_m = near.shares(), missing.shares()
    return Report(
        method=adapter.facts.method,
        backbone=models.backbone.fingerprint,
        data_digest=adapter.facts.data_digest,
        seed=adapter.facts.seed,
        acc_r_before=acc_r.bare,
        acc_r_previous=acc_r.previous,
        acc_r_after=acc_r.after,
        acc_r_weights=acc_r.weights,
        sure_r_before=_sure(retained.bare, retained.y),
        sure_r_previous=_sure(retained.previous, retained.y),
        sure_r_after=_sure(retained.after, retained.y),
        margin_r_before=_by_margin(head, retained.bare, retained.y),
        margin_r_after=_by_margin(head, retained.after, retained.y),
        acc_m_before=acc_m.bare if classes.missing else None,
        acc_m_after=acc_m.after if classes.missing else None,
        acc_f_before=acc_f.bare,
        acc_f_weights=acc_f.weights,
        acc_f_after=acc_f.after,
        acc_o_before=acc_o.bare if classes.earlier else None,
        acc_o_weights=acc_o.weights if classes.earlier else None,
        acc_o_after=acc_o.after if classes.earlier else None,
        near_before=near_r.bare,
        near_previous=near_r.previous,
        near_after=near_r.after,
        by_subject_weights=_by_subject(
            [(part.weights, part.y) for part in under_erasure],
            images=images,
            classes=classes,
            subjects=subjects,
        ),
        by_subject=_by_subject(
            [(part.after, part.y) for part in under_erasure],
            images=images,
            classes=classes,
            subjects=subjects,
        ),
        dump=most_hit(forget.after, forgotten=gone),
        dump_before=most_hit(masked, forgotten=gone),
        ece_before=ece(retained.bare, retained.y),
        ece_after=ece(retained.after, retained.y),
        leak=_still_named(under_erasure),
        emission=_emitted(retained, gone),
        leaks=leaks(models.weights),
        leaks_served=None if models.after is models.weights else leaks(models.after),
        groups_kept=adapter.facts.groups_kept,
        groups_total=adapter.facts.groups_total,
        adapter_bytes=cost.adapter_bytes,
        seconds=cost.seconds,
        steps=adapter.facts.steps,
        images={
            **cost.images,
            "retain_test": len(retained),
            "near_test": len(near),
            "forget_test": len(forget),
            "earlier_test": len(earlier),
        },
        unmeasured=len(spec.classes) - len(gone) - len(torch.unique(retained.y)),
    )


def nearest(masked: Tensor, y: Tensor) -> Tensor:
    """Labels (m,) of the retained classes that the forget images would go to under a mask.

    Args:
        masked: The bare backbone's probabilities for forget images (n, K), with 0 for all classes
            under erasure.
        y: Their labels (n,).

    Returns:
        The union, over the labels in `y`, of the `NEAREST` classes with the highest mean
        probability.
    """
    found = [
        mean.topk(min(NEAREST, int((mean > 0).sum()))).indices
        for mean in (masked[y == label].mean(dim=0) for label in torch.unique(y))
    ]
    return torch.unique(torch.cat(found)) if found else torch.empty(0, dtype=torch.int64)


def _answers(models: Models, samples: Samples, *, classes: int) -> _Answers:
    if len(samples) == 0:
        none = torch.empty(0, classes)
        return _Answers(samples.y, none, none, none, none)
    bare, previous, after = (
        predict(model, samples.x)
        for model in (models.backbone.model, models.previous, models.after)
    )
    edited = models.after is not models.weights
    weights = predict(models.weights, samples.x) if edited else after
    return _Answers(samples.y, bare, previous, after, weights)


def _by_subject(
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    images: ImageSet,
    classes: TaskClasses,
    subjects: Mapping[str, str],
) -> dict[str, Share]:
    """Accuracy of every class of this task, and of the earlier classes that were measured.

    `parts` are logits (n, classes) and labels (n,).
    """
    found = {label: share for part in parts for label, share in by_class(*part).items()}
    unmeasured = {subjects[name]: Share(0, 0) for name in classes.forget}
    return unmeasured | {subjects[images.classes[label]]: s for label, s in found.items()}


def _sure(logits: Tensor, y: Tensor) -> Share:
    """Images whose right answer has at least the probability of a sighting."""
    if len(y) == 0:
        return Share(0, 0)
    probability, answer = logits.softmax(dim=1).max(dim=1)
    return Share(int(((answer == y) & (probability >= _CONFIDENT)).sum()), len(y))


def _by_margin(head: nn.Linear, logits: Tensor, y: Tensor) -> Share | None:
    if not isinstance(head, CosineHead):
        return None
    return right(margin_logits(head, logits, y), y)


def _still_named(parts: Sequence[_Answers]) -> Share:
    """Of the images that the backbone names rightly and confidently, those still named the same."""
    hits = n = 0
    for part in parts:
        confidence, answer = part.bare.softmax(dim=1).max(dim=1)
        sighted = (answer == part.y) & (confidence >= _CONFIDENT)
        hits += int((sighted & (part.after.argmax(dim=1) == part.y)).sum())
        n += int(sighted.sum())
    return Share(hits, n)


def _emitted(retained: _Answers, gone: Tensor) -> Share:
    """Retained images that are answered with a class under erasure."""
    if len(retained) == 0:
        return Share(0, 0)
    named = torch.isin(retained.after.argmax(dim=1), gone)
    return Share(int(named.sum()), len(retained))
