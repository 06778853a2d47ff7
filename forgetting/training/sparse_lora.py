"""Lethe's method, the successor of GS-LoRA++: learn a sparse low-rank adapter that forgets.

    min  L_r + beta L_f + sigma L_s + kappa L_k + delta L_d + alpha L_a  +  lambda sum_l |B_l|

after GS-LoRA (Zhao et al., CVPR 2024, eq. 4 to 9), with L_d after Spotter (ICML 2026). The terms
are in `losses`.

First the closed form erases what distinguishes the forgotten classes in the feature
(`forgetting.erasure.leace`). The pairs are trained with that erasure in place, win back what it
cost, and are stored with it. Training has two phases:

- *select*: every block has a pair, and a proximal step follows each optimizer step. Blocks that
  contribute too little become exactly zero.
- *refit*: the surviving pairs are trained without shrinkage, on cached activations of the frozen
  blocks below them. It ends when the validation images stop improving.

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
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import right
from forgetting.models.prefix import PIXELS, lowest_cut, outputs_from
from forgetting.models.targets import Group, Pair, find_groups
from forgetting.training.config import (
    TrainConfig,
    affordable_rank,
    most_groups,
    refit_steps_for,
)
from forgetting.training.feature_edits import edit_after, edit_before
from forgetting.training.lora import LowRank, attach, detach, update_norm, update_parts
from forgetting.training.losses import (
    chance_bound,
    dispersion_loss,
    feature_loss,
    forget_loss,
    group_norm,
    prox_threshold,
    relearner_loss,
    retain_loss,
    shrink,
)
from forgetting.training.pools import (
    ClassShuffle,
    Pools,
    Shuffle,
    above_chance,
    answers,
    make_pools,
    steered,
)
from forgetting.training.progress import Progress, Tell

# Steps until the rate reaches its peak. Nothing is pruned before that.
WARM_UP = 5


@dataclass(frozen=True)
class TrainResult:
    """Pairs of the surviving groups by module path, the erasure, and facts about the training."""

    pairs: dict[str, Pair]
    erasure: LowRankEdit | None
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
    config: TrainConfig,
    generator: torch.Generator,
    progress: Tell | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Learn the pairs of one task.

    Args:
        model: The backbone's model with the adapters below in force. It isn't changed.
        data: The task's images.
        config: Hyper-parameters.
        generator: Source of all randomness.
        progress: Called at every look at the validation images; may raise to cancel.
        clock: Gives the seconds that are reported.

    Raises:
        TargetError: The model's FFNs are not recognised.
        TrainingError: The loss became NaN, there is nothing to forget, or no group survived.
    """
    started = clock()
    groups = find_groups(model)
    trained = copy.deepcopy(model).eval()
    pools = make_pools(trained, data, copies=config.copies, generator=generator)
    erasure = edit_before(trained, pools, data, share=config.erase)
    if erasure is not None:
        pools = steered(trained, pools, erasure, forgotten=data.forgotten)
    rank = config.rank or affordable_rank(model, groups, erasure=erasure, config=config)
    attached = attach(trained, groups, rank=rank, generator=generator)
    run = _Run(trained, pools, attached, config=config, generator=generator, progress=progress)
    run.select()
    run.refit()
    if erasure is not None:
        run.restore()
        erasure = edit_after(
            trained, run.pools, data, first=erasure, cut=run.cut, cost=config.erase_cost
        )
    return TrainResult(
        pairs=run.best,
        erasure=erasure,
        groups_kept=len(run.live),
        groups_total=len(groups),
        trainable=run.trainable,
        steps=run.step,
        seconds=clock() - started,
        history=tuple(run.history),
    )


class _Run:
    """One training run. `live` holds the groups that may still change, `best` the pairs to keep.

    The pools' activations are those at `cut`. No live group lies below it.
    """

    def __init__(
        self,
        model: nn.Module,
        pools: Pools,
        attached: dict[Group, tuple[LowRank, LowRank]],
        *,
        config: TrainConfig,
        generator: torch.Generator,
        progress: Tell | None,
    ) -> None:
        self.model, self.config, self.live = model, config, attached
        self.refit_steps = config.refit_steps or refit_steps_for(pools.forget_target.shape[1])
        self.total = len(attached)
        self.cut = lowest_cut(model)
        self.pools = pools
        self.best: dict[str, Pair] = {}
        self.step = 0
        self.history: list[Progress] = []
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
        most = most_groups(self.total, config)
        for _ in range(config.select_steps):
            rate = self._descend()
            if self.step % config.check_every == 0:
                self._look("select")
            if self.step > WARM_UP and len(self._shrink(rate)) <= most:
                break
        strongest = sorted(self.live, key=lambda g: update_norm(self.live[g]), reverse=True)
        self._keep([g for g in strongest[:most] if update_norm(self.live[g]) > 0])

    def refit(self) -> None:
        """Train the surviving groups. Keep the state that is best on the validation images."""
        config = self.config
        best, worse = (math.inf, math.inf), 0
        for i in range(1, self.refit_steps + 1):
            self._descend()
            if i % config.check_every and i != self.refit_steps:
                continue
            score = self._look("refit")
            if score[0] < best[0] or (score[0] == best[0] and score[1] < 0.99 * best[1]):
                best, worse, self.best = score, 0, self._pairs()
            else:
                worse += 1
            if worse >= config.patience and best[0] == 0:
                break

    def restore(self) -> None:
        """Put the pairs of the best state back into the model."""
        for group, pairs in self.live.items():
            for path, pair in zip(group.paths, pairs, strict=True):
                a, b = self.best[path]
                with torch.no_grad():
                    pair.a.copy_(a)
                    pair.b.copy_(b)

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
        e = self._earlier.next(config.earlier_batch, least=2)
        r = self._retain.next(config.retain_batch)
        parts = [pools.forget.x[f], pools.earlier.x[e], pools.retain.x[r]]
        x = torch.cat([part for part in parts if len(part)])
        gone = torch.cat([pools.forget.y[f], pools.earlier.y[e]])
        embedding, logits = outputs_from(self.model, x, cut=self.cut)
        bound = chance_bound(logits.shape[1], margin=config.margin)
        forget = forget_loss(logits[: len(gone)], gone, bound=bound)
        retain = retain_loss(logits[len(gone) :], pools.retain_target[r])
        self._losses = (float(forget.detach()), float(retain.detach()))
        loss = retain + config.beta * forget
        if config.steer > 0:
            loss = loss + config.steer * retain_loss(logits[: len(f)], pools.forget_target[f])
        if config.keep > 0:
            kept = pools.retain_embedding[r]
            loss = loss + config.keep * feature_loss(embedding[len(gone) :], kept)
        centre = embedding[len(gone) :].mean(dim=0).detach()
        return loss + self._recognisable(embedding[: len(gone)], gone, centre=centre)

    def _recognisable(self, embedding: Tensor, y: Tensor, *, centre: Tensor) -> Tensor:
        """delta L_d + alpha L_a: how well the forgotten classes could be recognised again."""
        config = self.config
        loss = torch.zeros(())
        if config.disperse > 0:
            loss = loss + config.disperse * dispersion_loss(embedding, y, centre=centre)
        if config.relearn > 0:
            loss = loss + config.relearn * relearner_loss(embedding, y)
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
        embedding, forget = answers(self.model, pools.val_forget, cut=self.cut)
        kept_embedding, retain = answers(self.model, pools.val_retain, cut=self.cut)
        look = Progress(
            phase=phase,
            step=self.step,
            steps=config.select_steps + self.refit_steps,
            forget_loss=self._losses[0],
            retain_loss=self._losses[1],
            val_acc_f=right(forget, pools.val_forget.y).value,
            val_acc_r=right(retain, pools.val_retain.y).value,
            groups=sum(update_norm(pairs) > 0 for pairs in self.live.values()),
        )
        self.history.append(look)
        if self._progress is not None:
            self._progress(look)
        centre = kept_embedding.mean(dim=0)
        loss = retain_loss(retain, pools.val_target)
        loss = loss + self._recognisable(embedding, pools.val_forget.y, centre=centre)
        return float(above_chance(forget, pools.val_forget.y)), float(loss)

    def _pairs(self) -> dict[str, Pair]:
        return {
            path: (pair.a.detach().clone(), pair.b.detach().clone())
            for group, pairs in self.live.items()
            for path, pair in zip(group.paths, pairs, strict=True)
        }
