"""The samples of one task, as activations at a cut of the model, and the order of drawing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.data.augment import Augmentation, augmented
from forgetting.data.samples import ForgetData, Samples
from forgetting.erasure.edit import LowRankEdit, erased
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import right
from forgetting.models.prefix import PIXELS, advance, lowest_cut, outputs_from
from forgetting.training.losses import chance_bound, cross_entropies, own_distribution


@dataclass(frozen=True)
class Pools:
    """All samples of a task. The targets are the same at every cut.

    Attributes:
        forget: Forget images and their augmented copies.
        forget_embedding: The model's embeddings of `forget` before the task (n, dim).
        forget_target: The model's answers to `forget` without the forgotten classes (n, K).
        earlier: Images of classes that earlier tasks forgot; may be empty.
        retain: Replayed images and their augmented copies.
        retain_target: Like `forget_target`, for `retain`.
        retain_embedding: Like `forget_embedding`, for `retain`. Training holds `retain` there.
        val_forget: Validation images of the classes to forget.
        val_retain: Validation images of the classes to keep.
        val_target: Like `forget_target`, for `val_retain`.
        val_right: How many of `val_retain` the model got right before the task.
        copies: Augmented copies of each image. They follow the originals.
    """

    forget: Samples
    forget_embedding: Tensor
    forget_target: Tensor
    earlier: Samples
    retain: Samples
    retain_target: Tensor
    retain_embedding: Tensor
    val_forget: Samples
    val_retain: Samples
    val_target: Tensor
    val_right: int
    copies: int

    def originals(self, samples: Samples) -> Samples:
        """The rows without the augmented ones, of a pool or of anything computed from its rows."""
        count = len(samples) // (1 + self.copies)
        return Samples(samples.x[:count], samples.y[:count])

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
    model: nn.Module, data: ForgetData, *, copies: int, generator: torch.Generator
) -> Pools:
    """The samples, with `copies` augmented copies of each, at the lowest cut, and their targets.

    Raises:
        TrainingError: There are no forget or no retain images, features aren't finite, or the model
            recognises no forget image.
    """
    for name, samples in (("forget", data.forget), ("retain", data.retain)):
        if len(samples) == 0:
            raise TrainingError(f"the task has no {name} images to learn from")
    cut = lowest_cut(model)

    def widened(samples: Samples, *, copies: int = copies) -> Samples:
        if len(samples) == 0:
            return samples
        extra = [augmented(samples.x, Augmentation(), generator=generator) for _ in range(copies)]
        x = advance(model, torch.cat([samples.x, *extra]), start=PIXELS, stop=cut)
        return Samples(x, samples.y.repeat(1 + copies))

    forget, retain = widened(data.forget), widened(data.retain)
    val_retain = widened(data.val_retain, copies=0)
    forget_embedding, forget_logits = answers(model, forget, cut=cut)
    retain_embedding, retain_logits = answers(model, retain, cut=cut)
    _, val_logits = answers(model, val_retain, cut=cut)
    for name, embedding in (("forget", forget_embedding), ("retain", retain_embedding)):
        if not embedding.isfinite().all():
            raise TrainingError(f"features of {name} images are not finite: NaN in image or model")
    if not above_chance(forget_logits, forget.y):
        raise TrainingError(
            "the model gives no forget image more than chance probability of its class: there is "
            "nothing to forget"
        )

    def target(logits: Tensor) -> Tensor:
        return own_distribution(logits, forgotten=data.forgotten)

    return Pools(
        forget=forget,
        forget_embedding=forget_embedding,
        forget_target=target(forget_logits),
        earlier=widened(data.earlier),
        retain=retain,
        retain_target=target(retain_logits),
        retain_embedding=retain_embedding,
        val_forget=widened(data.val_forget),
        val_retain=val_retain,
        val_target=target(val_logits),
        val_right=right(val_logits, val_retain.y).hits,
        copies=copies,
    )


def steered(model: nn.Module, pools: Pools, erasure: LowRankEdit, *, forgotten: Tensor) -> Pools:
    """The same pools with targets from `model`, which now has `erasure` in it.

    Even without a forgotten class, the bare model's answers to its images have a pattern (who looks
    like whom) by which the class could be recognised again. The erased model's answers have none.
    """
    vit: Any = model
    with torch.no_grad():
        logits = vit.get_classifier()(erased(pools.forget_embedding, erasure))
    return replace(
        pools,
        forget_target=own_distribution(logits, forgotten=forgotten),
        retain_embedding=erased(pools.retain_embedding, erasure),
    )


def answers(
    model: nn.Module, samples: Samples, *, cut: int, batch: int = 256
) -> tuple[Tensor, Tensor]:
    """Embeddings (n, dim) and logits (n, K) of samples at a cut, without gradients."""
    with torch.no_grad():
        starts = range(0, len(samples), batch)
        parts = [outputs_from(model, samples.x[i : i + batch], cut=cut) for i in starts]
    embeddings, logits = zip(*parts, strict=True)
    return torch.cat(embeddings), torch.cat(logits)


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
