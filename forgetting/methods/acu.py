"""ACU: a head in closed form, from which images are taken out exactly (Tang et al., 2505.12239).

    R = (X^T X + lambda I)^-1,   W = R X^T Y                                   the ridge head
    R' = R + R X_f^T (I - X_f R X_f^T)^-1 X_f R
    W' = W + R' X_f^T (X_f W - Y_f)                                            without X_f

X (n, d) are the frozen backbone's features, Y (n, K) the labels as unit vectors. W' is exactly the
head that was never fitted on the forget images. The paper fits W and R when the classes are
learned, and keeps R. Here each task fits them on its own images, retained and forget ones, and then
takes the latter out.

The backbone isn't changed, so whoever refits the head has the class back. The result is put into
the rows of the model's own head, whose kind stays. A linear head with a bias reads one more feature
that is always 1, and its logits are scaled to the spread that they had. A cosine head reads
directions, so its rows are fitted on unit features. A forgotten class's row is exactly zero. A
retained class without images keeps the row that it has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.errors import TrainingError
from forgetting.methods.draws import head_of, retained_classes
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.scar import embeddings
from forgetting.methods.watch import Watch, check_images
from forgetting.models.face_transformer import CosineHead
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class Ridge:
    """R (d, d) and W (d, K), in float64."""

    inverse: Tensor
    weight: Tensor


def fitted(x: Tensor, y: Tensor, *, ridge: float) -> Ridge:
    """The ridge head.

    Args:
        x: Features (n, d), float64.
        y: Targets (n, K), float64.
        ridge: lambda in units of the mean eigenvalue of X^T X, above 0.
    """
    gram = x.T @ x  # (d, n) @ (n, d) -> (d, d)
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    inverse = torch.linalg.inv(gram)
    return Ridge(inverse, inverse @ x.T @ y)


def without(head: Ridge, x: Tensor, y: Tensor) -> Ridge:
    """The head that was never fitted on features x (n, d) with targets y (n, K)."""
    reached = x @ head.inverse  # (n, d)
    inner = torch.eye(len(x), dtype=x.dtype, device=x.device) - reached @ x.T  # (n, n)
    inverse = head.inverse + reached.T @ torch.linalg.solve(inner, reached)
    return Ridge(inverse, head.weight + inverse @ x.T @ (x @ head.weight - y))


@dataclass(frozen=True)
class ACU:
    """`ridge` is lambda, in units of the mean eigenvalue of X^T X."""

    name: ClassVar[str] = "acu"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"ridge": 1.0},
        {"ridge": 1e-1},
        {"ridge": 1e-3},
        {"ridge": 1e-4},
    )
    ridge: float = 1e-2

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Uses neither budget nor generator.

        Raises:
            TrainingError: There are no images, the features aren't finite, or the head is neither
                linear nor cosine.
        """
        watch = Watch(task.data, progress, phase=self.name)
        data = task.data
        check_images(data)
        model = copy.deepcopy(task.model).requires_grad_(False).eval()
        head = head_of(model)
        if not isinstance(head, nn.Linear) or type(head) not in (nn.Linear, CosineHead):
            raise TrainingError(
                f"the head is a {type(head).__name__}; expected a linear or cosine one"
            )
        retain, forget = (embeddings(model, each.x).double() for each in (data.retain, data.forget))
        spread = None if isinstance(head, CosineHead) else head(retain.to(head.weight)).std()
        x_r, x_f = (_read_by(head, e) for e in (retain, forget))
        y_r, y_f = (F.one_hot(s.y, head.out_features).double() for s in (data.retain, data.forget))
        both = fitted(torch.cat([x_r, x_f]), torch.cat([y_r, y_f]), ridge=self.ridge)
        rows = without(both, x_f, y_f).weight.T  # (K, d), or (K, d + 1) with a bias
        kept = retained_classes(head.out_features, forgotten=data.forgotten)
        seen = kept[torch.isin(kept, data.retain.y)]
        _put(head, rows, seen=seen, gone=data.forgotten, spread=spread, x=x_r)
        seconds = watch.cpu_seconds
        nothing = torch.zeros(())
        watch.after(1, model, steps=1, forget=nothing, retain=nothing)
        return Learned(
            model=model,
            trainable=0,
            stored=sum(p.numel() for p in head.parameters()),
            steps=0,
            cpu_seconds=seconds,
        )


def _read_by(head: nn.Linear, e: Tensor) -> Tensor:
    """What the head's numbers multiply: unit features, or features and the bias's 1."""
    if isinstance(head, CosineHead):
        return F.normalize(e, dim=1)
    bias: Tensor | None = head.bias
    if bias is not None:
        return torch.cat([e, torch.ones_like(e[:, :1])], dim=1)
    return e


def _put(
    head: nn.Linear, rows: Tensor, *, seen: Tensor, gone: Tensor, spread: Tensor | None, x: Tensor
) -> None:
    """Write rows into the head in place. Those of `gone` become zero, others are left alone."""
    scale = 1.0
    if spread is not None:
        scale = float(spread / (x @ rows[seen].T).std().clamp(min=1e-12))
    d = head.in_features
    head.weight[seen] = (scale * rows[seen, :d]).to(head.weight)
    head.weight[gone] = 0.0
    if head.bias is not None:
        head.bias[seen] = (scale * rows[seen, d]).to(head.bias)
        head.bias[gone] = 0.0
