"""Head masking: make the forgotten classes' logits too small to win. No weight forgets anything.

By construction it has the best H, and fails every figure of what can be won back. It is in the
tables to show that. It is exact for any head. A plain linear head gets zero rows and a large
negative bias. Any other head is wrapped. (A cosine head has no bias, and a zero row still gives a
logit of 0.)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forgetting.errors import TrainingError
from forgetting.methods.draws import head_of, retained_classes
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch
from forgetting.training.progress import Tell

MASKED = -1e4
"""The logit of a masked class. It is finite even in half precision, and far below any other."""


class MaskedHead(nn.Module):
    """A head around another one. It gives some classes the logit `MASKED`."""

    forgotten: Tensor

    def __init__(self, head: nn.Module, forgotten: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("forgotten", forgotten.clone())

    def forward(self, e: Tensor) -> Tensor:
        """Logits (n, K) of embeddings (n, d)."""
        logits: Tensor = self.head(e)
        return logits.index_fill(1, self.forgotten, MASKED)


@dataclass(frozen=True)
class HeadMask:
    """It has no hyper-parameters, takes no step and needs no images."""

    name: ClassVar[str] = "head_mask"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ()

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Masks all of `task.data.forgotten`."""
        watch = Watch(task.data, progress, phase=self.name)
        model = copy.deepcopy(task.model).requires_grad_(False).eval()
        stored = mask(model, task.data.forgotten)
        nothing = torch.zeros(())
        seconds = watch.cpu_seconds
        watch.after(1, model, steps=1, forget=nothing, retain=nothing)
        return Learned(model=model, trainable=0, stored=stored, steps=0, cpu_seconds=seconds)


def mask(model: nn.Module, forgotten: Tensor) -> int:
    """Mask the classes (k,) in place.

    Returns:
        How many numbers describe the change: rows and biases, or the labels of a wrapped head.

    Raises:
        TrainingError: The head has no such label, or no class would be left.
    """
    head = head_of(model)
    inner = head.head if isinstance(head, MaskedHead) else head
    classes = getattr(inner, "out_features", None)
    if not isinstance(inner, nn.Linear) or not isinstance(classes, int):
        raise TrainingError(
            f"the head is a {type(inner).__name__}; expected a linear or cosine one"
        )
    if len(forgotten) and not 0 <= int(forgotten.min()) <= int(forgotten.max()) < classes:
        raise TrainingError(
            f"labels to mask must lie in 0..{classes - 1}, found {sorted(forgotten.tolist())}"
        )
    retained_classes(classes, forgotten=forgotten)
    if type(inner) is nn.Linear and inner.bias is not None:
        with torch.no_grad():
            inner.weight.index_fill_(0, forgotten, 0.0)
            inner.bias.index_fill_(0, forgotten, MASKED)
        return len(forgotten) * (inner.in_features + 1)
    _put_head(model, head, MaskedHead(inner, forgotten))
    return len(forgotten)


def _put_head(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of the model's classifier."""
    path = next(name for name, module in model.named_modules() if module is old)
    parent, _, name = path.rpartition(".")
    owner: Any = model.get_submodule(parent)
    setattr(owner, name, new)
