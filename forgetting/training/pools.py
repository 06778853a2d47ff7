"""The samples of one task, as activations at a cut of the model, and the order of drawing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from forgetting.data.augment import Augmentation, augmented
from forgetting.data.samples import ForgetData, Samples
from forgetting.errors import TrainingError
from forgetting.models.prefix import PIXELS, Outputs, advance, lowest_cut, outputs_from
from forgetting.training.losses import chance_bound, cross_entropies, own_distribution

# See `copies_for`.
VIEWS = 40
LEAST_COPIES, MOST_COPIES = 3, 15


@dataclass(frozen=True)
class Pools:
    """All samples of a task, and what the bare backbone makes of them. That is the same at any cut.

    Attributes:
        forget: Forget images and their augmented copies.
        forget_logits: The backbone's logits of `forget` (n, K).
        forget_target: The backbone's answers to `forget` without the forgotten classes (n, K).
        earlier: Images of classes that earlier tasks forgot; may be empty.
        retain: Replayed images and their augmented copies.
        retain_kept: The backbone's outputs for `retain`. Training holds them there.
        val_forget: Validation images of the classes to forget.
        val_retain: Validation images of the classes to keep.
        val_kept: Like `retain_kept`, for `val_retain`.
        kept: Labels that are not under erasure (k,).
    """

    forget: Samples
    forget_logits: Tensor = field(repr=False)
    forget_target: Tensor = field(repr=False)
    earlier: Samples
    retain: Samples
    retain_kept: Outputs
    val_forget: Samples
    val_retain: Samples
    val_kept: Outputs
    kept: Tensor

    def advanced(self, model: nn.Module, *, start: int, stop: int) -> Pools:
        """The same samples as activations at a higher cut."""

        def moved(samples: Samples) -> Samples:
            if len(samples) == 0:
                return samples
            return replace(samples, x=advance(model, samples.x, start=start, stop=stop))

        return replace(
            self,
            forget=moved(self.forget),
            earlier=moved(self.earlier),
            retain=moved(self.retain),
            val_forget=moved(self.val_forget),
            val_retain=moved(self.val_retain),
        )


def make_pools(
    model: nn.Module,
    data: ForgetData,
    *,
    original: nn.Module,
    copies: int | None,
    generator: torch.Generator,
) -> Pools:
    """The samples and augmented copies of them, at the lowest cut, and their targets.

    Args:
        model: The model before the task.
        data: The task's images.
        original: The bare backbone's model, from which the targets come. So what one task loses,
            the next one wins back, and no error adds up over a series of tasks.
        copies: Copies of each image. None takes `copies_for` each set.
        generator: Source of all randomness.

    Raises:
        TrainingError: There are no forget or no retain images, features aren't finite, or the model
            recognises no forget image.
    """
    for name, samples in (("forget", data.forget), ("retain", data.retain)):
        if len(samples) == 0:
            raise TrainingError(f"the task has no {name} images to learn from")
    cut = lowest_cut(model)

    def widened(samples: Samples, *, copies: int | None = copies) -> Samples:
        if len(samples) == 0:
            return samples
        count = copies_for(samples.y) if copies is None else copies
        extra = [augmented(samples.x, Augmentation(), generator=generator) for _ in range(count)]
        x = advance(model, torch.cat([samples.x, *extra]), start=PIXELS, stop=cut)
        return Samples(x, samples.y.repeat(1 + count))

    forget, retain = widened(data.forget), widened(data.retain)
    val_retain = widened(data.val_retain, copies=0)
    bare_forget, bare_retain = (answers(original, part, cut=cut) for part in (forget, retain))
    for name, outputs in (("forget", bare_forget), ("retain", bare_retain)):
        if not outputs.embedding.isfinite().all():
            raise TrainingError(f"features of {name} images are not finite: NaN in image or model")
    if not above_chance(answers(model, forget, cut=cut).logits, forget.y):
        raise TrainingError(
            "the model gives no forget image more than chance probability of its class: there is "
            "nothing to forget"
        )
    labels = torch.arange(bare_retain.logits.shape[1], device=data.forgotten.device)
    return Pools(
        forget=forget,
        forget_logits=bare_forget.logits,
        forget_target=own_distribution(bare_forget.logits, forgotten=data.forgotten),
        earlier=widened(data.earlier),
        retain=retain,
        retain_kept=bare_retain,
        val_forget=widened(data.val_forget),
        val_retain=val_retain,
        val_kept=answers(original, val_retain, cut=cut),
        kept=labels[~torch.isin(labels, data.forgotten)],
    )


def copies_for(y: Tensor) -> int:
    """Copies of each image so that a class has `VIEWS` images with its copies; few shots need more.

    Args:
        y: The images' labels (n,), n > 0.
    """
    per_class = len(y) / len(torch.unique(y))
    return min(MOST_COPIES, max(LEAST_COPIES, math.ceil(VIEWS / per_class) - 1))


def answers(model: nn.Module, samples: Samples, *, cut: int, batch: int = 256) -> Outputs:
    """The outputs for samples at a cut, without gradients."""
    with torch.no_grad():
        starts = range(0, len(samples), batch)
        parts = [outputs_from(model, samples.x[i : i + batch], cut=cut) for i in starts]
    return Outputs(
        tuple(torch.cat(blocks) for blocks in zip(*(p.blocks for p in parts), strict=True)),
        torch.cat([p.embedding for p in parts]),
        torch.cat([p.logits for p in parts]),
    )


def above_chance(logits: Tensor, y: Tensor) -> int:
    """How many samples still give their own class more than chance probability."""
    return int((cross_entropies(logits, y) < chance_bound(logits.shape[1], margin=0.0)).sum())


class Shuffle:
    """Endless rows of a pool. Every row comes once before any row comes twice."""

    def __init__(self, n: int, *, generator: torch.Generator) -> None:
        self._n, self._generator = n, generator
        self._rows = torch.empty(0, dtype=torch.int64)

    def next(self, count: int) -> Tensor:
        """`count` rows, or all rows of a smaller pool."""
        count = min(count, self._n)
        if len(self._rows) < count:
            fresh = torch.randperm(self._n, generator=self._generator)
            self._rows = torch.cat([self._rows, fresh])
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken


class ClassShuffle:
    """Endless rows of a pool, several of one class at a time.

    Classes take turns, and so do the rows of a class.
    """

    def __init__(self, y: Tensor, *, generator: torch.Generator) -> None:
        self._own = [torch.nonzero(y == label).flatten() for label in sorted(set(y.tolist()))]
        self._rows: Sequence[Shuffle] = [Shuffle(len(o), generator=generator) for o in self._own]
        self._classes = Shuffle(len(self._own), generator=generator)

    def next(self, count: int, *, least: int = 4, most: int | None = None) -> Tensor:
        """About `count` rows, with `least` to `most` of each class drawn."""
        if not self._own:
            return torch.empty(0, dtype=torch.int64)
        classes = min(len(self._own), max(1, count // least))
        each = min(count // classes, most or count)
        chosen = self._classes.next(classes).tolist()
        return torch.cat([self._own[c][self._rows[c].next(each)] for c in chosen])
