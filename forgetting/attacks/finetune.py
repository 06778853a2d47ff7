"""What fine-tuning brings back after a fixed number of steps.

A curve that ends at a target hides how far a model is from it: two models that both need more than
60 steps may be at 16 and at 72 % by then. So every attacker here takes the same steps, and is asked
at the same ones. There are attackers of four scopes, and each comes twice:

- *few shots*: a few images of each forgotten class and a replay of the others, with true labels;
- *retain only*: the replay alone, without one image of a forgotten class (arXiv 2505.22310). The
  loss is over the retained classes, so that it doesn't push the forgotten rows of the head down.
  A mask may have destroyed these rows, so afterwards prototypes are written into them too: they
  tell whether the features have come back.

Read the figures as the excess over a model that never saw the classes. The attackers get the same
draws and the same optimizer for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.attacks.head import bare_head, margin_logits, revived, with_head
from forgetting.attacks.prototypes import written_head
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.accuracy import right
from forgetting.measure.features import Features, draw_per_class
from forgetting.models.prefix import PIXELS, advance, lowest_cut, outputs_from
from forgetting.models.targets import find_groups
from forgetting.training.lora import attach

Scope = Literal["head", "last_block", "lora", "all"]
SCOPES: tuple[Scope, ...] = ("head", "last_block", "lora", "all")
"""What an attacker trains: the head; it and the last block; it and new pairs on every FFN; all."""
# Retained images whose mean a plain head's prototypes are centred on.
_MOST_RETAINED = 500


@dataclass(frozen=True)
class FinetuneConfig:
    """How the attackers fine-tune.

    Attributes:
        scopes: Which attackers there are.
        shots: Images of each forgotten class; 0 for none (retain only). Each makes one curve.
        looks: Steps after which the test images are asked. All steps are always taken.
        prototype_shots: Images of each forgotten class for the prototypes after retain only.
        batch: Most forget images in a step, and most retain images.
        rate: Adam's rate for all weights except the head's.
        head_rate: Adam's rate for the head. Its forgotten rows may have to start from nothing.
        rank: Rank of the new pairs.
    """

    scopes: tuple[Scope, ...] = SCOPES
    shots: tuple[int, ...] = (5, 0)
    looks: tuple[int, ...] = (10, 30, 100)
    prototype_shots: int = 5
    batch: int = 32
    rate: float = 5e-4
    head_rate: float = 1e-2
    rank: int = 8


@dataclass(frozen=True)
class FinetuneCurve:
    """Plain Acc_f of one attacker on test images, after each number of steps.

    `prototype_f` is the same at the end with prototypes of a few images in the forgotten rows;
    None for an attacker who had forget images from the start.
    """

    scope: Scope
    shots: int
    steps: tuple[int, ...]
    acc_f: tuple[float, ...]
    prototype_f: float | None


def finetune(
    model: nn.Module,
    *,
    train: Samples,
    test: Samples,
    forgotten: Tensor,
    generator: torch.Generator,
    config: FinetuneConfig = FinetuneConfig(),
) -> tuple[FinetuneCurve, ...]:
    """Run every attacker on a copy of the model.

    Args:
        model: A ViT as `load_backbone` gives it, in eval mode. It isn't changed.
        train: Training images of all classes.
        test: Test images. Only those of the forgotten classes are used.
        forgotten: Labels (k,).
        generator: Source of the draws. Each attacker starts from the same state.
        config: Hyper-parameters.

    Raises:
        DataError: Training images of the forgotten or of the retained classes, or test images of
            the forgotten ones, are missing.
        TargetError: The model's FFNs are not recognised, so there is no place for new pairs.
    """
    gone, tested = torch.isin(train.y, forgotten), torch.isin(test.y, forgotten)
    if not bool(gone.any()) or bool(gone.all()) or not bool(tested.any()):
        raise DataError(
            "fine-tuning needs training images of forgotten and of retained classes and test "
            f"images of forgotten ones, found {int(gone.sum())}, {int((~gone).sum())}, "
            f"{int(tested.sum())}"
        )
    forget = Samples(train.x[gone], train.y[gone])
    retain = Samples(train.x[~gone], train.y[~gone])
    asked = Samples(test.x[tested], test.y[tested])
    state = generator.get_state()
    curves = []
    for scope in config.scopes:
        for shots in config.shots:
            draws = torch.Generator().set_state(state)
            count = shots or config.prototype_shots
            chosen = draw_per_class(forget.y, count=count, generator=draws)
            few = Samples(forget.x[chosen], forget.y[chosen])
            curve = _attack(
                model,
                scope,
                shots,
                samples=(few, retain, asked),
                forgotten=forgotten,
                generator=draws,
                config=config,
            )
            curves.append(curve)
    return tuple(curves)


def _attack(
    model: nn.Module,
    scope: Scope,
    shots: int,
    *,
    samples: tuple[Samples, Samples, Samples],
    forgotten: Tensor,
    generator: torch.Generator,
    config: FinetuneConfig,
) -> FinetuneCurve:
    attacked = with_head(model, revived(bare_head(model), forgotten=forgotten)).eval()
    attacked.requires_grad_(False)
    head = _head(attacked)
    cut = _lowest_trained(attacked, scope)
    if scope == "lora":
        attach(attacked, find_groups(attacked), rank=config.rank, generator=generator)
    body = _body(attacked, scope)
    for parameter in (*body, *head.parameters()):
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [{"params": body, "lr": config.rate}] * bool(body)
        + [{"params": list(head.parameters()), "lr": config.head_rate}]
    )
    few, retain, asked = (
        Samples(advance(attacked, s.x, start=PIXELS, stop=cut), s.y) if len(s) else s
        for s in samples
    )
    found = []
    for step in range(1, config.looks[-1] + 1):
        parts = (few, retain) if shots else (retain,)
        x, y = _drawn(parts, batch=config.batch, generator=generator)
        logits = margin_logits(head, outputs_from(attacked, x, cut=cut).logits, y)
        if shots == 0:
            logits = logits.index_fill(1, forgotten, -torch.inf)
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in config.looks:
            with torch.no_grad():
                answers = outputs_from(attacked, asked.x, cut=cut).logits
            found.append(right(answers, asked.y).value)
    written = None
    if shots == 0:
        some = torch.randperm(len(retain), generator=generator)[:_MOST_RETAINED]
        shown, kept, read = (
            _features(attacked, s, cut=cut)
            for s in (few, Samples(retain.x[some], retain.y[some]), asked)
        )
        with torch.no_grad():
            answers = written_head(head, shown=shown, retained=kept)(read.embedding)
        written = right(answers, read.y).value
    return FinetuneCurve(scope, shots, config.looks, tuple(found), written)


def _lowest_trained(model: nn.Module, scope: Scope) -> int:
    """The cut below which the attacker trains nothing, so that it is computed once."""
    lowest = lowest_cut(model)
    if scope == "all" or lowest == PIXELS:
        return PIXELS
    depth = len(model.blocks)  # type: ignore[arg-type]
    return {"head": depth, "last_block": depth - 1}.get(scope, lowest)


def _head(model: nn.Module) -> nn.Linear:
    vit: Any = model
    head: nn.Linear = vit.get_classifier()
    return head


def _body(model: nn.Module, scope: Scope) -> list[nn.Parameter]:
    """What an attacker trains apart from the head."""
    vit: Any = model
    inside = {id(p) for p in vit.get_classifier().parameters()}
    if scope == "head":
        return []
    if scope == "last_block":
        ends = [vit.blocks[-1], *(m for m in (vit.norm, vit.fc_norm) if m is not None)]
        return [p for module in ends for p in module.parameters()]
    if scope == "lora":
        return [p for name, p in model.named_parameters() if name.endswith((".a", ".b"))]
    return [p for p in model.parameters() if id(p) not in inside]


def _features(model: nn.Module, samples: Samples, *, cut: int) -> Features:
    with torch.no_grad():
        outputs = outputs_from(model, samples.x, cut=cut)
    return Features(outputs.embedding, outputs.logits, samples.y)


def _drawn(
    parts: Sequence[Samples], *, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At most `batch` images of each part, and their labels."""
    rows = [torch.randperm(len(s), generator=generator)[:batch] for s in parts]
    return (
        torch.cat([s.x[r] for s, r in zip(parts, rows, strict=True)]),
        torch.cat([s.y[r] for s, r in zip(parts, rows, strict=True)]),
    )


def recall(curves: Sequence[FinetuneCurve], scope: Scope, shots: int, steps: int) -> float | None:
    """Acc_f of one attacker after some steps; None if there is no such figure."""
    for curve in curves:
        if (curve.scope, curve.shots) == (scope, shots) and steps in curve.steps:
            return curve.acc_f[curve.steps.index(steps)]
    return None
