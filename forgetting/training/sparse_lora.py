"""Lethe's method, the successor of GS-LoRA++: learn a sparse low-rank adapter that forgets.

    min  kappa L_k + mu L_m + beta L_f + sigma L_s + delta L_d + alpha L_a  +  lambda sum_l |B_l|

after GS-LoRA (Zhao et al., CVPR 2024, eq. 4 to 9), with L_d after Spotter (ICML 2026). The terms
are in `losses`.

The pairs forget by themselves. There is no feature edit and no mask in front of them. Features and
answers of retained images are held where the *bare backbone* has them, whatever earlier tasks did,
so no error adds up over a series of tasks. Features are held, dispersed and relearned at the
outputs of the upper blocks too, so that a class goes where it is represented.

- *select*: every block has a pair, and a proximal step follows each optimizer step. Blocks that
  contribute too little become exactly zero. A task on top of others keeps to the blocks that these
  have changed.
- *refit*: the surviving pairs are trained without shrinkage, on cached activations of the frozen
  blocks below them. The state that is best on the validation images is kept.

The test images are never seen here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgetting.data.samples import ForgetData
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import right
from forgetting.models.prefix import PIXELS, Outputs, lowest_cut, outputs_from
from forgetting.models.targets import Group, Pair, find_groups
from forgetting.training.config import (
    TrainConfig,
    affordable_rank,
    most_groups,
    refit_steps_for,
)
from forgetting.training.lora import LowRank, attach, detach, update_norm, update_parts
from forgetting.training.losses import (
    dispersion_loss,
    feature_loss,
    forget_bound,
    forget_loss,
    group_norm,
    match_loss,
    prox_threshold,
    relearner_loss,
    retain_loss,
    shrink,
    spread,
)
from forgetting.training.pools import (
    ClassShuffle,
    Pools,
    Shuffle,
    above_chance,
    answers,
    make_pools,
)
from forgetting.training.progress import Progress, Tell

# Steps until the rate reaches its peak. Nothing is pruned before that.
WARM_UP = 5


@dataclass(frozen=True)
class TrainResult:
    """Pairs of the surviving groups by module path, and facts about the training."""

    pairs: dict[str, Pair]
    groups_kept: int
    groups_total: int
    trainable: int
    steps: int
    seconds: float
    history: tuple[Progress, ...]


def train(
    model: nn.Module,
    data: ForgetData,
    *,
    original: nn.Module,
    config: TrainConfig,
    generator: torch.Generator,
    groups: Sequence[Group] | None = None,
    progress: Tell | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Learn the pairs of one task.

    Args:
        model: The backbone's model with the pairs below in force, and without any feature edit. It
            isn't changed.
        data: The task's images.
        original: The bare backbone's model. It isn't changed.
        config: Hyper-parameters.
        generator: Source of all randomness.
        groups: The linears that may change; None takes `find_groups(model)`.
        progress: Called at every look at the validation images; may raise to cancel.
        clock: Gives the seconds that are reported.

    Raises:
        TargetError: The model's FFNs are not recognised.
        TrainingError: The loss became NaN, there is nothing to forget, or no group survived.
    """
    started = clock()
    groups = find_groups(model) if groups is None else groups
    trained = copy.deepcopy(model).eval()
    pools = make_pools(trained, data, original=original, copies=config.copies, generator=generator)
    rank = config.rank or affordable_rank(model, groups, config=config)
    candidates = _candidates(model, original, groups, most=most_groups(len(groups), config))
    attached = attach(trained, candidates, rank=rank, generator=generator)
    run = _Run(
        trained,
        pools,
        attached,
        most=most_groups(len(groups), config),
        depth=1 + max(group.index for group in groups),
        config=config,
        generator=generator,
        progress=progress,
    )
    run.select()
    run.refit()
    return TrainResult(
        pairs=run.best,
        groups_kept=len(run.live),
        groups_total=len(groups),
        trainable=run.trainable,
        steps=run.step,
        seconds=clock() - started,
        history=tuple(run.history),
    )


def _candidates(
    model: nn.Module, original: nn.Module, groups: Sequence[Group], *, most: int
) -> Sequence[Group]:
    """The groups that may get pairs: those that earlier tasks changed, if these are enough.

    So a long series of tasks leaves as many blocks untouched as one task does.
    """

    def weight(of: nn.Module, path: str) -> Tensor:
        return of.get_submodule(path).weight  # type: ignore[return-value]

    changed = [
        group
        for group in groups
        if any(not torch.equal(weight(model, p), weight(original, p)) for p in group.paths)
    ]
    return changed if len(changed) >= most else groups


@dataclass(frozen=True)
class _Level:
    """Features at one depth, now and in the backbone, and the latter's spread."""

    now: Tensor
    then: Tensor
    spread: float


class _Run:
    """One training run. `live` holds the groups that may still change, `best` the pairs to keep.

    The pools' activations are those at `cut`. No live group lies below it.
    """

    def __init__(
        self,
        model: nn.Module,
        pools: Pools,
        attached: dict[Group, tuple[LowRank, ...]],
        *,
        most: int,
        depth: int,
        config: TrainConfig,
        generator: torch.Generator,
        progress: Tell | None,
    ) -> None:
        self.model, self.config, self.live = model, config, attached
        self.refit_steps = config.refit_steps or refit_steps_for(pools.forget_target.shape[1])
        self.cut = lowest_cut(model)
        self.pools = pools
        self.best: dict[str, Pair] = {}
        self.step = 0
        self.history: list[Progress] = []
        self._most = most
        self._deepest = depth - math.floor(config.deep_share * depth)
        kept = pools.retain_kept
        self._spreads = [spread(t) for t in (*kept.blocks[self._deepest :], kept.embedding)]
        self._bound = forget_bound(
            pools.forget_logits, pools.forget.y, margin=config.margin, gap=config.gap
        )
        self._progress = progress
        self._losses = (math.nan, math.nan)
        parameters = [p for pairs in attached.values() for m in pairs for p in (m.a, m.b)]
        self.trainable = sum(p.numel() for p in parameters)
        self._optimizer = torch.optim.Adam(parameters, lr=config.rate, betas=(0.9, 0.99))
        self._forget = ClassShuffle(pools.forget.y, generator=generator)
        self._earlier = ClassShuffle(pools.earlier.y, generator=generator)
        self._retain = Shuffle(len(pools.retain), generator=generator)

    def select(self) -> None:
        """Train with shrinkage until few groups are left, then drop those that are zero."""
        config = self.config
        for _ in range(config.select_steps):
            rate = self._descend()
            if self.step % config.check_every == 0:
                self._look("select")
            if self.step > WARM_UP and len(self._shrink(rate)) <= self._most:
                break
        strongest = sorted(self.live, key=lambda g: update_norm(self.live[g]), reverse=True)
        self._keep([g for g in strongest[: self._most] if update_norm(self.live[g]) > 0])

    def refit(self) -> None:
        """Train the surviving groups. Keep the state that is best on the validation images."""
        best = (math.inf, math.inf)
        for i in range(1, self.refit_steps + 1):
            self._descend()
            if i % self.config.check_every and i != self.refit_steps:
                continue
            score = self._look("refit")
            if score <= best:
                best, self.best = score, self._pairs()

    def _descend(self) -> float:
        """One optimizer step; returns its learning rate."""
        self.step += 1
        rate = self._rate()
        loss = self._loss()
        if not math.isfinite(sum(self._losses)):
            raise TrainingError(
                f"training broke down at step {self.step}: forget loss {self._losses[0]}, retain "
                f"loss {self._losses[1]}; lower the rate (now {self.config.rate})"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return rate

    def _loss(self) -> Tensor:
        """The objective on one batch of forget, earlier and retain images."""
        config, pools = self.config, self.pools
        f = self._forget.next(config.forget_batch, most=config.forget_per_class)
        e = self._earlier.next(config.earlier_batch)
        r = self._retain.next(config.retain_batch)
        parts = [pools.forget.x[f], pools.earlier.x[e], pools.retain.x[r]]
        x = torch.cat([part for part in parts if len(part)])
        y = torch.cat([pools.forget.y[f], pools.earlier.y[e]])
        outputs = outputs_from(self.model, x, cut=self.cut)
        gone, kept = outputs.logits[: len(y)], outputs.logits[len(y) :]
        forget = forget_loss(gone, y, bound=self._bound)
        retain = config.match * match_loss(kept, pools.retain_kept.logits[r], kept=pools.kept)
        loss = config.beta * forget
        if config.steer > 0:
            loss = loss + config.steer * retain_loss(gone[: len(f)], pools.forget_target[f])
        for level in self._levels(outputs, pools.retain_kept):
            features = level.now
            retain = retain + config.keep * feature_loss(
                features[len(y) :], level.then[r], spread=level.spread
            )
            loss = loss + self._recognisable(features[: len(y)], y, others=features[len(y) :])
        self._losses = (float(forget.detach()), float(retain.detach()))
        return loss + retain

    def _levels(self, outputs: Outputs, kept: Outputs) -> list[_Level]:
        """The read-outs of the upper blocks that can change, and the feature."""
        lowest = max(self._deepest, self.cut)
        now = (*outputs.blocks[lowest - max(self.cut, 0) :], outputs.embedding)
        then = (*kept.blocks[lowest:], kept.embedding)
        return [_Level(*level) for level in zip(now, then, self._spreads[-len(now) :], strict=True)]

    def _recognisable(self, embedding: Tensor, y: Tensor, *, others: Tensor) -> Tensor:
        """delta L_d + alpha L_a: how well the forgotten classes could be recognised again.

        `others` are features of retained images at the same depth.
        """
        config = self.config
        loss = torch.zeros(())
        if config.disperse > 0:
            loss = loss + config.disperse * dispersion_loss(
                embedding, y, centre=others.mean(dim=0).detach()
            )
        if config.relearn > 0:
            loss = loss + config.relearn * relearner_loss(embedding, y, others=others)
        return loss

    def _rate(self) -> float:
        """The warm-up, then a cosine down to a tenth of the peak."""
        config = self.config
        done = self.step / (config.select_steps + self.refit_steps)
        rate = config.rate * min(1.0, self.step / WARM_UP)
        rate *= 0.1 + 0.9 * (1 + math.cos(math.pi * min(1.0, done))) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _shrink(self, rate: float) -> list[Group]:
        """Take the proximal step on every group; return those that aren't zero after it."""
        strongest = max(self.live, key=lambda g: update_norm(self.live[g]))
        alive: list[Group] = []
        for group, pairs in self.live.items():
            parts = update_parts(pairs)
            size = sum(part.numel() for part in parts)
            threshold = prox_threshold(strength=self.config.sparsity, rate=rate, size=size)
            # Never shrink the strongest group to zero: an empty adapter would forget nothing.
            spared = group == strongest and group_norm(parts) <= threshold
            if spared or shrink(parts, threshold=threshold):
                alive.append(group)
        return alive

    def _keep(self, groups: Sequence[Group]) -> None:
        """Drop all other groups for good. Move the cut up to the lowest group that is left."""
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
        """Measure on the validation images and report it.

        Returns:
            (forget images above chance, the other losses). States are compared in that order.
        """
        pools, config = self.pools, self.config
        forget = answers(self.model, pools.val_forget, cut=self.cut)
        retain = answers(self.model, pools.val_retain, cut=self.cut)
        loss = config.match * match_loss(retain.logits, pools.val_kept.logits, kept=pools.kept)
        moved = loss.new_zeros(())
        for own, level in zip(
            self._levels(forget, pools.val_kept),
            self._levels(retain, pools.val_kept),
            strict=True,
        ):
            moved = feature_loss(level.now, level.then, spread=level.spread)
            loss = loss + config.keep * moved
            loss = loss + self._recognisable(own.now, pools.val_forget.y, others=level.now)
        look = Progress(
            phase=phase,
            step=self.step,
            steps=config.select_steps + self.refit_steps,
            forget_loss=self._losses[0],
            retain_loss=self._losses[1],
            val_acc_f=right(forget.logits, pools.val_forget.y).value,
            val_acc_r=right(retain.logits, pools.val_retain.y).value,
            moved=float(moved),  # of the feature, which is the last level
            groups=sum(update_norm(pairs) > 0 for pairs in self.live.values()),
        )
        self.history.append(look)
        if self._progress is not None:
            self._progress(look)
        return float(above_chance(forget.logits, pools.val_forget.y)), float(loss)

    def _pairs(self) -> dict[str, Pair]:
        return {
            path: (pair.a.detach().clone(), pair.b.detach().clone())
            for group, pairs in self.live.items()
            for path, pair in zip(group.paths, pairs, strict=True)
        }
