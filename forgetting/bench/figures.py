"""Measure a method's result on test images. Only this part of the benchmark reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.adapter.files import AdapterFacts, code_version
from forgetting.adapter.low_rank import Adapter, to_files
from forgetting.attacks.head import bare_head, margin_logits
from forgetting.bench.cell import MarginFigures, ServedFigures, TaskFigures
from forgetting.bench.leaks import leak_figures
from forgetting.bench.material import Material
from forgetting.data.image_set import class_index
from forgetting.data.roles import TaskClasses
from forgetting.erasure.edit import without_edit
from forgetting.errors import TargetError
from forgetting.measure.accuracy import Share, by_class, most_hit, right
from forgetting.measure.calibration import ece, jensen_shannon
from forgetting.measure.features import Features, extract, rows
from forgetting.methods.protocol import Learned
from forgetting.models.face_transformer import CosineHead
from forgetting.models.targets import find_groups
from forgetting.training.losses import own_distribution

FALSE_ACCEPTS = 0.01
"""The share of strangers that a threshold may accept."""


@dataclass(frozen=True)
class Measured:
    """A model, and its features of the test images by its weights alone."""

    model: nn.Module
    test: Features


@dataclass(frozen=True)
class _Split:
    """Features of the test images by role."""

    retained: Features
    forget: Features
    earlier: Features | None
    missing: Features | None


def measure_task(
    material: Material, number: int, *, previous: Measured, learned: Learned, attacked: bool
) -> tuple[TaskFigures, dict[str, Any], Measured]:
    """All figures of a task, the answer to each test image, and the model for the next task.

    Args:
        material: Images, bare backbone and reference.
        number: Number of the task, from 1.
        previous: The model before this task, with its features.
        learned: The result to measure.
        attacked: Whether to run the attacks too.
    """
    classes = material.tasks[number - 1]
    bare = material.backbone.model
    weights = without_edit(learned.model)
    measured = Measured(learned.model, material.test_features(weights))
    before, now = _split(material, classes, material.bare), _split(material, classes, measured.test)
    under = [now.forget, *([now.earlier] if now.earlier else [])]
    shares = [share for part in under for share in by_class(part.logits, part.y).values()]
    gone = torch.tensor([class_index(material.images, n) for n in classes.under_erasure])
    masked = own_distribution(before.forget.logits, forgotten=gone)
    figures = TaskFigures(
        number=number,
        name=material.setting.task_name(number),
        acc_r=_right(now.retained),
        acc_r_before=_right(before.retained),
        acc_r_previous=_right(_split(material, classes, previous.test).retained),
        acc_f=_right(now.forget),
        acc_f_before=_right(before.forget),
        worst_class=max(share.value for share in shares),
        acc_o=_right(now.earlier) if now.earlier else None,
        acc_o_before=_right(before.earlier) if before.earlier else None,
        acc_m=_right(now.missing) if now.missing else None,
        acc_m_before=_right(before.missing) if before.missing else None,
        margin=_margin(bare, before, now),
        sure_r=_sure(material, weights, now.retained),
        sure_r_before=_sure(material, bare, before.retained),
        served=None if weights is learned.model else _served(material, classes, learned.model),
        dump=most_hit(now.forget.logits, forgotten=gone),
        dump_masked=most_hit(masked, forgotten=gone),
        ece=ece(now.retained.logits, now.retained.y),
        ece_before=ece(before.retained.logits, before.retained.y),
        js=_js(material, number, classes, now),
        parameters=sum(p.numel() for p in bare.parameters()),
        trainable=learned.trainable,
        stored=learned.stored,
        stored_bytes=_stored_bytes(material, classes, learned),
        steps=learned.steps,
        cpu_seconds=learned.cpu_seconds,
        groups_kept=learned.groups_kept,
        groups_total=learned.groups_total,
        update_norms=_update_norms(previous.model, learned.model),
        leak=(
            leak_figures(material, number, gone, weights=weights, served=learned.model)
            if attacked
            else None
        ),
    )
    return figures, _samples(material, number, classes, now), measured


def _split(material: Material, classes: TaskClasses, test: Features) -> _Split:
    def of(names: tuple[str, ...]) -> Features:
        labels = torch.tensor([class_index(material.images, name) for name in names])
        return rows(test, torch.isin(test.y, labels))

    return _Split(
        retained=of(classes.retained),
        forget=of(classes.forget),
        earlier=of(classes.earlier) if classes.earlier else None,
        missing=of(classes.missing) if classes.missing else None,
    )


def _right(features: Features) -> Share:
    return right(features.logits, features.y)


def _margin(bare: nn.Module, before: _Split, now: _Split) -> MarginFigures | None:
    """The accuracies with the margin; None if the head has none. No method changes the margin."""
    head = bare_head(bare)
    if not isinstance(head, CosineHead):
        return None

    def share(part: Features) -> float:
        return right(margin_logits(head, part.logits, part.y), part.y).value

    return MarginFigures(
        acc_r=share(now.retained),
        acc_r_before=share(before.retained),
        acc_f=share(now.forget),
        acc_f_before=share(before.forget),
        acc_o=share(now.earlier) if now.earlier else None,
    )


def _sure(material: Material, model: nn.Module, retained: Features) -> float | None:
    if len(material.strangers) == 0:
        return None
    # By the highest logit: a cosine head's probabilities are 1 for strangers too.
    score = extract(model, material.strangers).logits.amax(dim=1)
    threshold = torch.quantile(score, 1 - FALSE_ACCEPTS)
    highest, answer = retained.logits.max(dim=1)
    return float(((answer == retained.y) & (highest > threshold)).float().mean())


def _served(material: Material, classes: TaskClasses, model: nn.Module) -> ServedFigures:
    now = _split(material, classes, material.test_features(model))
    return ServedFigures(
        acc_r=_right(now.retained).value,
        acc_f=_right(now.forget).value,
        acc_o=_right(now.earlier).value if now.earlier else None,
    )


def _js(material: Material, number: int, classes: TaskClasses, now: _Split) -> float | None:
    if number not in material.never:
        return None
    never = _split(material, classes, material.never[number])
    own = [now.forget.logits, *([now.earlier.logits] if now.earlier else [])]
    other = [never.forget.logits, *([never.earlier.logits] if never.earlier else [])]
    return jensen_shannon(torch.cat(own), torch.cat(other))


def _stored_bytes(material: Material, classes: TaskClasses, learned: Learned) -> int:
    """The size of the adapter's files if the method is low-rank, else 4 bytes for each number."""
    if not learned.pairs:
        return 4 * learned.stored
    facts = AdapterFacts(
        backbone=material.backbone.fingerprint,
        stack=(),
        subjects=tuple(f"subject-{i}" for i in range(len(classes.forget))),
        method="bench",
        config={},
        seed=material.seed,
        steps=learned.steps,
        data_digest=material.images.manifest_digest,
        code_version=code_version(),
        groups_kept=learned.groups_kept or 0,
        groups_total=learned.groups_total or 0,
    )
    return sum(len(content) for content in to_files(Adapter(learned.pairs, facts)).values())


def _update_norms(previous: nn.Module, after: nn.Module) -> tuple[float, ...] | None:
    """|W_after - W_previous|_F over the linears of each block; None for an unknown FFN."""
    try:
        try:
            groups = find_groups(previous, targets="both")
        except TargetError:  # a block without plain attention
            groups = find_groups(previous)
        norms = []
        for group in groups:
            changes = [_weight(after, path) - _weight(previous, path) for path in group.paths]
            norms.append(float(sum(c.square().sum() for c in changes)) ** 0.5)
    except (TargetError, AttributeError):
        return None
    return tuple(norms)


def _weight(model: nn.Module, path: str) -> Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach().double()


def _samples(material: Material, number: int, classes: TaskClasses, now: _Split) -> dict[str, Any]:
    """Label, answer and the label's probability of each test image, in order and by role."""

    def columns(part: Features | None) -> dict[str, Any]:
        if part is None:
            return {"label": [], "answer": [], "probability": []}
        own = part.logits.softmax(dim=1).gather(1, part.y[:, None]).squeeze(1)
        return {
            "label": part.y.tolist(),
            "answer": part.logits.argmax(dim=1).tolist(),
            "probability": [round(float(p), 6) for p in own],
        }

    return {
        "task": material.setting.task_name(number),
        "number": number,
        "classes": list(material.images.classes),
        "forget": list(classes.forget),
        "retained_test": columns(now.retained),
        "forget_test": columns(now.forget),
        "earlier_test": columns(now.earlier),
    }
