"""GS-LoRA: learn a sparse low-rank adapter that forgets.

    min  L_r + beta * L_f  +  lambda * sum_l |B_l|        (Zhao et al., CVPR 2024, eq. 4 to 9)

Two phases. *select*: every block has its pair and each optimizer step is followed by a proximal
step; blocks that don't earn their keep become exactly zero. *refit*: the survivors alone are
trained without shrinkage, on cached activations of the frozen blocks below them, until the
validation images say that it is enough. The test images are never seen here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.augment import Augmentation, augmented
from forgetting.errors import TrainingError
from forgetting.lora import LowRank, attach, detach, update_norm, update_parts
from forgetting.losses import (
    chance_bound,
    forget_loss,
    group_norm,
    own_distribution,
    prox_threshold,
    retain_loss,
    shrink,
)
from forgetting.measure import right
from forgetting.method import ForgetData, Pair, Progress, Samples, Tell
from forgetting.prefix import PIXELS, advance, logits_from, lowest_cut
from forgetting.targets import Group, find_groups


@dataclass(frozen=True)
class TrainConfig:
    """One default for every task.

    Attributes:
        rank: Of every pair.
        select_steps: Most steps of the first phase.
        refit_steps: Most steps of the second phase.
        forget_batch: Forget images a step.
        retain_batch: Retain images a step.
        earlier_batch: Images of earlier forgotten classes a step, where there are any.
        rate: Peak learning rate of Adam.
        margin: Nats above log K that a forget sample is pushed to.
        beta: Weight of the forget loss.
        steer: Weight of the pull of forget images to the model's own answer without the forgotten
            classes, so that they are not all pushed onto one retained class; 0 is plain GS-LoRA.
        sparsity: Strength of the proximal step, a share of the optimizer's step (0..1).
        target_share: The first phase ends early once at most this share of the groups is left.
        most_share: At most this share of the groups enters the second phase, strongest first.
        copies: Augmented copies of each training image, beside the original.
        replay_per_class: Retain images of each class, at most.
        check_every: Steps between two looks at the validation images.
        patience: Looks without a better state before the second phase ends.
    """

    rank: int = 8
    select_steps: int = 30
    refit_steps: int = 80
    forget_batch: int = 16
    retain_batch: int = 40
    earlier_batch: int = 8
    rate: float = 5e-3
    margin: float = 1.0
    beta: float = 1.0
    steer: float = 0.3
    sparsity: float = 0.4
    target_share: float = 1 / 3
    most_share: float = 0.5
    copies: int = 3
    replay_per_class: int = 20
    check_every: int = 10
    patience: int = 3


@dataclass(frozen=True)
class TrainResult:
    """Pairs of the surviving groups by module path, and how they came about."""

    pairs: dict[str, Pair]
    groups_kept: int
    groups_total: int
    steps: int
    seconds: float
    history: tuple[Progress, ...]


def train(
    model: nn.Module,
    data: ForgetData,
    *,
    config: TrainConfig,
    generator: torch.Generator,
    progress: Tell | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Learn the pairs of one task.

    Args:
        model: The backbone's model with the weights of the adapters below already in it; it is
            left as it is.
        data: The task's images.
        config: Hyper-parameters.
        generator: Source of all randomness.
        progress: Called at every look at the validation images; may raise to cancel.
        clock: For the seconds that are reported.

    Raises:
        TargetError: The model's FFNs are not recognised.
        TrainingError: The loss became NaN, there is nothing to forget, or no group survived.
    """
    started = clock()
    groups = find_groups(model)
    trained = copy.deepcopy(model).eval()
    pools = _pools(trained, data, config=config, generator=generator)
    attached = attach(trained, groups, rank=config.rank, generator=generator)
    run = _Run(trained, pools, attached, config=config, generator=generator, progress=progress)
    run.select()
    run.refit()
    return TrainResult(
        pairs=run.best,
        groups_kept=len(run.live),
        groups_total=len(groups),
        steps=run.step,
        seconds=clock() - started,
        history=tuple(run.history),
    )


@dataclass(frozen=True)
class _Pools:
    """The task's samples as activations at one cut; the targets stay the same at every cut."""

    forget: Samples  # earlier forgotten classes' samples are in their own pool
    forget_target: Tensor
    earlier: Samples
    retain: Samples
    retain_target: Tensor
    val_forget: Samples
    val_retain: Samples
    val_target: Tensor

    def advanced(self, model: nn.Module, *, start: int, stop: int) -> _Pools:
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


def _pools(
    model: nn.Module, data: ForgetData, *, config: TrainConfig, generator: torch.Generator
) -> _Pools:
    """The samples and their augmented copies at the lowest cut, with their targets."""
    for name, samples in (("forget", data.forget), ("retain", data.retain)):
        if len(samples) == 0:
            raise TrainingError(f"the task has no {name} images to learn from")
    cut = lowest_cut(model)

    def widened(samples: Samples, *, copies: int = config.copies) -> Samples:
        if len(samples) == 0:
            return samples
        extra = [augmented(samples.x, Augmentation(), generator=generator) for _ in range(copies)]
        x = advance(model, torch.cat([samples.x, *extra]), start=PIXELS, stop=cut)
        return Samples(x, samples.y.repeat(1 + copies))

    def target(samples: Samples) -> Tensor:
        return own_distribution(_answers(model, samples, cut=cut), forgotten=data.forgotten)

    forget, retain = widened(data.forget), widened(data.retain)
    val_retain = widened(data.val_retain, copies=0)
    if not _above_chance(_answers(model, forget, cut=cut), forget.y):
        raise TrainingError(
            "the model gives no forget image more than chance probability of its class: there is "
            "nothing to forget"
        )
    return _Pools(
        forget=forget,
        forget_target=target(forget),
        earlier=widened(data.earlier),
        retain=retain,
        retain_target=target(retain),
        val_forget=widened(data.val_forget),
        val_retain=val_retain,
        val_target=target(val_retain),
    )


def _answers(model: nn.Module, samples: Samples, *, cut: int, batch: int = 256) -> Tensor:
    """Logits (n, classes), without gradients."""
    with torch.no_grad():
        starts = range(0, len(samples), batch)
        parts = [logits_from(model, samples.x[i : i + batch], cut=cut) for i in starts]
    return torch.cat(parts)


def _above_chance(logits: Tensor, y: Tensor) -> int:
    """How many samples still give their class more than chance probability."""
    loss = F.cross_entropy(logits, y, reduction="none")
    return int((loss < chance_bound(logits.shape[1], margin=0.0)).sum())


class _Shuffle:
    """Endless rows of a pool, every row once before any row twice."""

    def __init__(self, n: int, *, generator: torch.Generator) -> None:
        self._n, self._generator = n, generator
        self._rows = torch.empty(0, dtype=torch.int64)

    def next(self, count: int) -> Tensor:
        count = min(count, self._n)
        if len(self._rows) < count:
            fresh = torch.randperm(self._n, generator=self._generator)
            self._rows = torch.cat([self._rows, fresh])
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken


class _Run:
    """One training run. `live` holds the groups that may still change, `best` the pairs to keep.

    The pools' activations always belong to `cut`, and no live group lies below it.
    """

    def __init__(
        self,
        model: nn.Module,
        pools: _Pools,
        attached: dict[Group, tuple[LowRank, LowRank]],
        *,
        config: TrainConfig,
        generator: torch.Generator,
        progress: Tell | None,
    ) -> None:
        self.model, self.config, self.live = model, config, attached
        self.total = len(attached)
        self.cut = lowest_cut(model)
        self.pools = pools
        self.best: dict[str, Pair] = {}
        self.step = 0
        self.history: list[Progress] = []
        self._progress = progress
        self._losses = (math.nan, math.nan)
        parameters = [p for pairs in attached.values() for m in pairs for p in (m.a, m.b)]
        self._optimizer = torch.optim.Adam(parameters, lr=config.rate, betas=(0.9, 0.99))
        self._forget = _Shuffle(len(pools.forget), generator=generator)
        self._earlier = _Shuffle(len(pools.earlier), generator=generator)
        self._retain = _Shuffle(len(pools.retain), generator=generator)

    def select(self) -> None:
        """Descend with shrinkage until few groups are left, then drop those that are zero."""
        config = self.config
        wanted = max(1, math.ceil(config.target_share * self.total))
        for _ in range(config.select_steps):
            rate = self._descend()
            alive = self._shrink(rate)
            if self.step % config.check_every == 0:
                self._look("select")
            if len(alive) <= wanted:
                break
        most = max(1, math.floor(config.most_share * self.total))
        strongest = sorted(self.live, key=lambda g: update_norm(self.live[g]), reverse=True)
        self._keep([g for g in strongest[:most] if update_norm(self.live[g]) > 0])

    def refit(self) -> None:
        """Descend with the surviving groups; keep the state that validation likes best."""
        config = self.config
        best, worse = (math.inf, math.inf), 0
        for i in range(1, config.refit_steps + 1):
            self._descend()
            if i % config.check_every and i != config.refit_steps:
                continue
            score = self._look("refit")
            if score[0] < best[0] or (score[0] == best[0] and score[1] < 0.99 * best[1]):
                best, worse, self.best = score, 0, self._pairs()
            else:
                worse += 1
            if worse >= config.patience and best[0] == 0:
                break

    def _descend(self) -> float:
        """One optimizer step; returns its learning rate."""
        config, pools, cut = self.config, self.pools, self.cut
        self.step += 1
        rate = self._rate()
        f = self._forget.next(config.forget_batch)
        e = self._earlier.next(config.earlier_batch)
        r = self._retain.next(config.retain_batch)
        parts = [pools.forget.x[f], pools.earlier.x[e], pools.retain.x[r]]
        x = torch.cat([part for part in parts if len(part)])
        gone = torch.cat([pools.forget.y[f], pools.earlier.y[e]])
        logits = logits_from(self.model, x, cut=cut)
        bound = chance_bound(logits.shape[1], margin=config.margin)
        forget = forget_loss(logits[: len(gone)], gone, bound=bound)
        retain = retain_loss(logits[len(gone) :], pools.retain_target[r])
        loss = retain + config.beta * forget
        if config.steer > 0:
            loss = loss + config.steer * retain_loss(logits[: len(f)], pools.forget_target[f])
        self._losses = (float(forget.detach()), float(retain.detach()))
        if not math.isfinite(sum(self._losses)):
            raise TrainingError(
                f"training broke down at step {self.step}: forget loss {self._losses[0]}, retain "
                f"loss {self._losses[1]}; lower the rate (now {config.rate})"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return rate

    def _rate(self) -> float:
        """Five steps of warm-up, then a cosine down to a tenth of the peak."""
        config = self.config
        done = self.step / (config.select_steps + config.refit_steps)
        rate = config.rate * min(1.0, self.step / 5)
        rate *= 0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, done))) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _shrink(self, rate: float) -> list[Group]:
        """The proximal step on every group; returns those that are not zero after it."""
        strongest = max(self.live, key=lambda g: update_norm(self.live[g]))
        alive: list[Group] = []
        for group, pairs in self.live.items():
            parts = update_parts(pairs)
            size = sum(part.numel() for part in parts)
            threshold = prox_threshold(strength=self.config.sparsity, rate=rate, size=size)
            # The strongest group is never shrunk away: an empty adapter would forget nothing.
            spared = group == strongest and group_norm(parts) <= threshold
            if spared or shrink(parts, threshold=threshold):
                alive.append(group)
        return alive

    def _keep(self, groups: Sequence[Group]) -> None:
        """Drop all other groups for good and move the cut up to the lowest that is left."""
        if not groups:
            raise TrainingError("no group survived: the forget loss gave no lasting direction")
        for group in [g for g in self.live if g not in groups]:
            for pair in self.live[group]:
                pair.requires_grad_(False)
            detach(self.model, group, self.live.pop(group))
        lowest = min(g.index for g in groups)
        if self.cut != PIXELS and lowest > self.cut:
            self.pools = self.pools.advanced(self.model, start=self.cut, stop=lowest)
            self.cut = lowest

    def _look(self, phase: str) -> tuple[float, float]:
        """Measure on validation images and tell.

        Returns:
            (forget images above chance, retain loss), to be compared in that order.
        """
        pools = self.pools
        forget = _answers(self.model, pools.val_forget, cut=self.cut)
        retain = _answers(self.model, pools.val_retain, cut=self.cut)
        look = Progress(
            phase=phase,
            step=self.step,
            steps=self.config.select_steps + self.config.refit_steps,
            forget_loss=self._losses[0],
            retain_loss=self._losses[1],
            val_acc_f=right(forget, pools.val_forget.y).value,
            val_acc_r=right(retain, pools.val_retain.y).value,
            groups=sum(update_norm(pairs) > 0 for pairs in self.live.values()),
        )
        self.history.append(look)
        if self._progress is not None:
            self._progress(look)
        above = _above_chance(forget, pools.val_forget.y)
        return float(above), float(retain_loss(retain, pools.val_target))

    def _pairs(self) -> dict[str, Pair]:
        return {
            path: (pair.a.detach().clone(), pair.b.detach().clone())
            for group, pairs in self.live.items()
            for path, pair in zip(group.paths, pairs, strict=True)
        }
