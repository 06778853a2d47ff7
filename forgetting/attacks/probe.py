"""The linear probe: a fresh head on the frozen features, with a few images of every class.

It is a multinomial logistic regression with an L2 penalty on standardised features, fitted to
convergence (L-BFGS). Its recall of the forgotten classes shows what the embedding still holds,
whatever the old head answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.errors import DataError
from forgetting.measure.accuracy import right
from forgetting.measure.features import Features, draw_per_class, rows, split


@dataclass(frozen=True)
class ProbeConfig:
    """How often and how hard the probe tries.

    Attributes:
        shots: Images of each class; None for all.
        draws: How often images are drawn. The mean over the draws is reported.
        penalty: Weight of |W|^2 / 2 beside the *sum* of the cross-entropies (scikit-learn's 1 / C).
        iterations: Most iterations of L-BFGS.
    """

    shots: tuple[int | None, ...] = (1, 5, 20, None)
    draws: int = 3
    penalty: float = 1.0
    iterations: int = 60


@dataclass(frozen=True)
class ProbePoint:
    """Means over the draws: recall of the forgotten test images, accuracy on the retained ones."""

    shots: int | None
    recall_f: float
    acc_r: float


def probe(
    train: Features,
    test: Features,
    *,
    forgotten: Tensor,
    generator: torch.Generator,
    config: ProbeConfig = ProbeConfig(),
) -> tuple[ProbePoint, ...]:
    """Fit fresh heads, and read the forgotten classes with them.

    Args:
        train: Features of all classes, including the forgotten ones.
        test: Test features of the same classes.
        forgotten: Labels (k,).
        generator: Source of the draws.
        config: Hyper-parameters.

    Raises:
        DataError: There are no training images of forgotten classes.
    """
    if not bool(torch.isin(train.y, forgotten).any()):
        raise DataError("a probe needs training images of the forgotten classes, found none")
    most = int(train.y.bincount().max())
    parts = split(test, forgotten=forgotten)
    points: list[ProbePoint] = []
    whole: ProbePoint | None = None  # all draws of all images are the same
    for shots in config.shots:
        takes_all = shots is None or shots >= most
        if takes_all and whole is not None:
            points.append(ProbePoint(shots, whole.recall_f, whole.acc_r))
            continue
        recalls, accuracies = [], []
        for _ in range(1 if takes_all else config.draws):
            count = most if shots is None else shots
            drawn = rows(train, draw_per_class(train.y, count=count, generator=generator))
            head = fit(drawn.embedding, drawn.y, penalty=config.penalty, steps=config.iterations)
            recalls.append(right(head(parts[0].embedding), parts[0].y).value)
            accuracies.append(right(head(parts[1].embedding), parts[1].y).value)
        point = ProbePoint(shots, sum(recalls) / len(recalls), sum(accuracies) / len(accuracies))
        points.append(point)
        whole = point if takes_all else None
    return tuple(points)


@dataclass(frozen=True)
class ProbeHead:
    """Weights (K', d) and bias (K',) on standardised features, for the labels (K',)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    labels: Tensor
    classes: int

    def __call__(self, embedding: Tensor) -> Tensor:
        """Logits (n, classes) of embeddings (n, d); -inf for labels that weren't fitted."""
        z = (embedding - self.mean) / self.deviation
        logits = z.new_full((len(z), self.classes), -torch.inf)
        logits[:, self.labels] = z @ self.weight.T + self.bias  # (n, d) @ (d, K') -> (n, K')
        return logits


def fit(embedding: Tensor, y: Tensor, *, penalty: float, steps: int) -> ProbeHead:
    """Fit the regression on embeddings (n, d) with labels (n,). It is deterministic."""
    labels, target = torch.unique(y, return_inverse=True)
    mean, deviation = embedding.mean(dim=0), embedding.std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    z = (embedding - mean) / deviation
    weight = torch.zeros(len(labels), z.shape[1], requires_grad=True)
    bias = torch.zeros(len(labels), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, target)  # (n, d) @ (d, K') -> (n, K')
        loss = loss + penalty / (2 * len(z)) * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return ProbeHead(
        weight.detach(), bias.detach(), mean, deviation, labels, classes=int(labels.max()) + 1
    )
