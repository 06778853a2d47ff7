"""SLUG: one layer, one gradient (Cai et al., ICML 2025).

    importance_l = |g_f,l| / |theta_l|,   alignment_l = |cos(g_f,l, g_r,l)|
    theta_l <- theta_l + s g_f,l

g_f and g_r are the gradients of CE over all forget and all retain images, computed once at the
weights of before. The candidates are the weight matrices on the Pareto front: no other matrix is
both more important and less aligned. For each of them a search finds the smallest step s at which
the forget images are no longer recognised. The candidate that then recognises most retain images
wins.

As in the authors' code, biases, norms and embeddings are no candidates. The head isn't one either,
as in the other methods here. The search looks at training images only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.samples import Samples
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import h_mean, share_right
from forgetting.methods.draws import head_of
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.regularised import few
from forgetting.methods.salun import mean_gradient
from forgetting.methods.ssd import differing
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


@dataclass(frozen=True)
class Layer:
    """A candidate: its parameter's name, importance and alignment."""

    name: str
    importance: float
    alignment: float


def layers(
    model: nn.Module, *, forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]
) -> list[Layer]:
    """All linear layers but the head, with gradients by parameter name.

    Raises:
        TrainingError: No layer has a gradient.
    """
    head = head_of(model)
    found = []
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if not isinstance(module, nn.Linear) or module is head or name not in forget:
            continue
        g_f, g_r = forget[name].flatten(), retain[name].flatten()
        if float(g_f.norm()) == 0:
            continue
        found.append(
            Layer(
                name,
                float(g_f.norm() / module.weight.norm().clamp(min=1e-12)),
                abs(float(F.cosine_similarity(g_f, g_r, dim=0))),
            )
        )
    if not found:
        raise TrainingError("no layer has a gradient on the images to forget")
    return found


def pareto(candidates: Sequence[Layer]) -> list[Layer]:
    """Those that no other beats in both importance (high) and alignment (low)."""
    return [
        each
        for each in candidates
        if not any(
            other.importance > each.importance and other.alignment < each.alignment
            for other in candidates
        )
    ]


def smallest(reached: Callable[[float], bool], *, start: float, looks: int) -> float | None:
    """The smallest step found for which `reached` holds: double from `start`, then bisect.

    Args:
        reached: Whether a step is large enough.
        start: First step to try, above 0.
        looks: How often `reached` may be called.

    Returns:
        The step; None if no step that was tried is large enough.
    """
    low, high = 0.0, None
    step = start
    for _ in range(looks):
        if reached(step):
            high = step
        else:
            low = step
        step = 2 * step if high is None else (low + high) / 2
    return high


@dataclass(frozen=True)
class SLUG:
    """SLUG.

    Attributes:
        goal: Accuracy on the forget images that is low enough.
        start: First step that is tried, as a share of |theta_l| / |g_f,l|. The authors' is 1/10.
        looks: How many steps are tried for a layer.
        samples: The most images of each side on which a step is judged.
    """

    name: ClassVar[str] = "slug"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = ({"goal": 0.02}, {"goal": 0.05})
    goal: float = 0.0
    start: float = 0.1
    looks: int = 10
    samples: int = 200

    def learn(
        self,
        task: Task,
        *,
        budget: Budget,
        generator: torch.Generator,
        progress: Tell | None = None,
    ) -> Learned:
        """See `forgetting.methods.protocol.Method.learn`. Takes one step, whatever the budget.

        Raises:
            TrainingError: There are no images, or no gradient, or one that isn't finite.
        """
        watch = Watch(task.data, progress, phase=self.name)
        check_images(task.data)
        g_f, g_r = (mean_gradient(task.model, s) for s in (task.data.forget, task.data.retain))
        forget, retain = (
            few(each, self.samples, generator=generator)
            for each in (task.data.forget, task.data.retain)
        )
        model = copy.deepcopy(task.model).requires_grad_(False).eval()
        best: tuple[float, str, Tensor] | None = None
        for layer in pareto(layers(task.model, forget=g_f, retain=g_r)):
            score, weight = self._searched(model, layer, g_f[layer.name], forget, retain)
            if best is None or score > best[0]:
                best = (score, layer.name, weight)
        assert best is not None  # the front is never empty
        _, name, weight = best
        model.get_parameter(name).copy_(weight)
        seconds = watch.cpu_seconds
        nothing = torch.zeros(())
        watch.after(1, model, steps=1, forget=nothing, retain=nothing)
        return Learned(
            model=model,
            trainable=weight.numel(),
            stored=differing(model, task.original),
            steps=1,
            cpu_seconds=seconds,
        )

    def _searched(
        self, model: nn.Module, layer: Layer, gradient: Tensor, forget: Samples, retain: Samples
    ) -> tuple[float, Tensor]:
        """H of what is kept and what is forgotten, and the layer's weight after the step.

        The model's own weight is put back.
        """
        theta = model.get_parameter(layer.name)
        before = theta.detach().clone()

        def forgotten_right(step: float) -> float:
            theta.copy_(before + step * gradient)
            return share_right(model, forget.x, forget.y).value

        start = self.start / layer.importance  # importance is |g| / |theta|
        step = smallest(lambda s: forgotten_right(s) <= self.goal, start=start, looks=self.looks)
        if step is None:  # the largest step that was tried
            step = start * 2.0 ** (self.looks - 1)
        left = forgotten_right(step)
        score = h_mean(share_right(model, retain.x, retain.y).value, 1 - left)
        weight = theta.detach().clone()
        theta.copy_(before)
        return score, weight
