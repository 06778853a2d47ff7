"""DUCK and SCAR: move forget images to the nearest wrong class, in the feature that the head reads.

    DUCK   L = f mean_i (1 - cos(e_i, mu_c(i)))    +  r CE(retain)
           Cotogni et al., 2312.02052
    SCAR   L = f mean_i d_c(i)(e_i)                +  r KL(softmax(mask(z_t)) || softmax(z_s))
           Bonato et al., ECCV 2024

e is an image's feature, mu_c a retained class's mean, and c(i) the retained class that was nearest
before the task. SCAR measures by d_c(e) = (|e| - |mu_c|)^T S_c^-1 (|e| - |mu_c|), with unit vectors
|.| and the class's correlation matrix S_c. It needs no retain image, only the retained classes'
means and covariances, as a server could have kept them: they are computed once, in the first task,
and carried on. In place of retain images it distils on *surrogates*
(`forgetting.methods.surrogates`), without those that the teacher names as a forgotten class.

Against the authors' code: each forget image keeps its own target (there the list of targets belongs
to other batches from the second epoch on), and a class's mean is over all of its images (there over
those of the first ten batches). SCAR's covariance is shrunk by gamma times the mean variance. Two
things are left out: its second shrinkage, towards the mean covariance, which makes the covariance
of layer-normed features singular; and its root of the features, which can't be taken of negative
ones. The published methods stop at a forget accuracy of 1 %; here all take the same number of
steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.methods.delete import divergence, masked
from forgetting.methods.distilled import taught
from forgetting.methods.draws import Draws, Shuffle, label_loss
from forgetting.methods.finetune import Recipe, Terms, finetune
from forgetting.methods.gs_lora import prototype_distance
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.surrogates import surrogates
from forgetting.methods.watch import Watch, check_images
from forgetting.models.backbone import features_and_logits
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class Classes:
    """What is kept of each class: its label (k,), mean (k, d) and S_c^-1 (k, d, d)."""

    labels: Tensor
    mean: Tensor
    precision: Tensor

    def without(self, gone: Tensor) -> Classes:
        """The other classes.

        Raises:
            TrainingError: There are none.
        """
        kept = ~torch.isin(self.labels, gone)
        if not bool(kept.any()):
            raise TrainingError("no retained class is left whose features are known")
        return Classes(self.labels[kept], self.mean[kept], self.precision[kept])

    def distances(self, e: Tensor) -> Tensor:
        """d_c(e_i) of features (n, d) from all classes (n, k)."""
        apart = F.normalize(e, dim=1)[:, None] - F.normalize(self.mean, dim=1)  # (n, k, d)
        # (k, d, d) and (n, k, d) twice -> (n, k)
        return torch.einsum("nkd,kde,nke->nk", apart, self.precision, apart)

    def distance(self, e: Tensor, nearest: Tensor) -> Tensor:
        """d of each feature (n, d) from the class in its row of `nearest` (n,): (n,)."""
        apart = F.normalize(e, dim=1) - F.normalize(self.mean[nearest], dim=1)  # (n, d)
        return torch.einsum("nd,nde,ne->n", apart, self.precision[nearest], apart)


def embeddings(model: nn.Module, x: Tensor, *, batch: int = 256) -> Tensor:
    """The features (n, d) that the head reads, without gradients.

    Raises:
        TrainingError: One isn't finite.
    """
    with torch.no_grad():
        parts = [features_and_logits(model, x[i : i + batch])[0] for i in range(0, len(x), batch)]
    found = torch.cat(parts)
    if not bool(found.isfinite().all()):
        raise TrainingError("the model's features of the images are not finite")
    return found


def class_statistics(model: nn.Module, samples: Samples, *, gamma: float) -> Classes:
    """Means and inverse correlation matrices of the classes that have images.

    A class's covariance is S + gamma v I, where v is the mean variance within all classes, and is
    then scaled to a diagonal of 1.

    Args:
        model: Its features are meant.
        samples: Images of the classes, at least one.
        gamma: The shrinkage, above 0.

    Raises:
        TrainingError: A feature isn't finite.
    """
    e = embeddings(model, samples.x).double()
    labels = torch.unique(samples.y)
    groups = [e[samples.y == label] for label in labels]
    means = torch.stack([group.mean(dim=0) for group in groups])
    centred = [group - mean for group, mean in zip(groups, means, strict=True)]
    freedom = max(1, len(e) - len(groups))
    variance = sum(float(part.square().sum()) for part in centred) / freedom / e.shape[1]
    if variance == 0:  # one image of each class
        variance = max(float(e.var(dim=0, unbiased=False).mean()), 1e-12)
    precisions = []
    for part in centred:
        covariance = part.T @ part / max(1, len(part) - 1)  # (d, n) @ (n, d) -> (d, d)
        covariance.diagonal().add_(gamma * variance)
        scale = covariance.diagonal().sqrt()
        precisions.append(torch.linalg.inv(covariance / torch.outer(scale, scale)))
    return Classes(labels, means.to(samples.x), torch.stack(precisions).to(samples.x))


@dataclass(frozen=True)
class Duck:
    """DUCK: `push` is f, `labels` is r, `rate` the peak learning rate."""

    name: ClassVar[str] = "duck"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"rate": 1e-3},
        {"rate": 3e-3},
        {"rate": 1e-3, "push": 5.0},
        {"rate": 3e-3, "push": 5.0},
    )
    push: float = 1.5
    labels: float = 1.5
    rate: float = 3e-4

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`."""
        watch = Watch(task.data, progress, phase=self.name)
        data = task.data
        check_images(data)
        e = F.normalize(embeddings(task.model, data.retain.x), dim=1)
        labels = torch.unique(data.retain.y)
        means = torch.stack([e[data.retain.y == label].mean(dim=0) for label in labels])
        means = F.normalize(means, dim=1)  # (k, d)
        start = F.normalize(embeddings(task.model, data.forget.x), dim=1)
        target = means[(start @ means.T).argmax(dim=1)]  # (n, d) @ (d, k) -> (n, k); then (n, d)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f, r = draws.forget(), draws.retain()
            embedding, logits = features_and_logits(model, torch.cat([f.x, r.x]))
            return Terms(
                forget=self.push * prototype_distance(embedding[: len(f)], target[f.rows]),
                retain=self.labels * label_loss(model, logits[len(f) :], r.y),
            )

        return finetune(
            task, step, recipe=Recipe(self.rate), budget=budget, generator=generator, watch=watch
        )


@dataclass(frozen=True)
class SCAR:
    """SCAR.

    Attributes:
        push: f, weight of the distance to the nearest wrong class.
        distil: r, weight of the distillation on surrogates.
        gamma: Shrinkage of a class's covariance.
        own: Share of the surrogates (0..1) that are shuffled forget images.
        surrogates: How many surrogates there are.
        rate: Peak learning rate.
    """

    name: ClassVar[str] = "scar"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"rate": 1e-3},
        {"rate": 1e-3, "push": 10.0},
        {"rate": 1e-3, "push": 10.0, "own": 0.0},
        {"rate": 3e-3, "push": 10.0},
    )
    push: float = 1.0
    distil: float = 5.0
    gamma: float = 3.0
    own: float = 0.5
    surrogates: int = 1000
    rate: float = 3e-4

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`.

        Needs retain images in the first task only, for the classes' means and covariances.
        """
        watch = Watch(task.data, progress, phase=self.name)
        data = task.data
        check_images(data, retain=task.carried is None)
        known: Classes = task.carried or class_statistics(task.model, data.retain, gamma=self.gamma)
        known = known.without(data.forgotten)
        with torch.no_grad():
            start = embeddings(task.model, data.forget.x)
            nearest = torch.cat([known.distances(e).argmin(dim=1) for e in torch.split(start, 64)])
        others, target = self._surrogates(task, generator)
        drawn = Shuffle(others, batch=budget.batch, generator=generator)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f, s = draws.forget(), drawn.next()
            embedding, logits = features_and_logits(model, torch.cat([f.x, s.x]))
            away = known.distance(embedding[: len(f)], nearest[f.rows]).mean()
            kept = divergence(logits[len(f) :], target[s.rows])
            return Terms(forget=self.push * away, retain=self.distil * kept)

        return finetune(
            task,
            step,
            recipe=Recipe(self.rate),
            budget=budget,
            generator=generator,
            watch=watch,
            retain=False,
            carried=known,
        )

    def _surrogates(self, task: Task, generator: torch.Generator) -> tuple[Samples, Tensor]:
        """Surrogates with the class that the teacher names, and their targets (n, K).

        Raises:
            TrainingError: The teacher names all of them as forgotten classes.
        """
        x = surrogates(task.data.forget.x, count=self.surrogates, own=self.own, generator=generator)
        logits = taught(task.model, x)
        named = logits.argmax(dim=1)
        rows = (~torch.isin(named, task.data.forgotten)).nonzero().flatten()
        if len(rows) == 0:
            raise TrainingError("all surrogates look like forgotten classes; nothing to distil on")
        target = masked(logits[rows], forgotten=task.data.forgotten)
        return Samples(x[rows], named[rows]), target
