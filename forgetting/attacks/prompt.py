"""A visual prompt: one pattern, added to every image, that wakes the forgotten classes.

The attacker changes no weight. He learns the pattern with a few images of every class and their
true labels, so a pattern that turns *every* image into a forgotten class gains nothing. The same is
done with the labels shuffled among the images. What the true labels win above the shuffled ones is
what the model still knows; the rest is what a pattern can do to any model. (The control says
something only of a model that names no forgotten image without a prompt.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.attacks.head import bare_head, margin_logits, masked_rows, with_head
from forgetting.attacks.prototypes import written_head
from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.accuracy import right
from forgetting.measure.features import draw_per_class, extract, split


@dataclass(frozen=True)
class PromptConfig:
    """How the prompt is learned.

    Attributes:
        shots: Images of each class, forgotten or retained.
        steps: Optimizer steps.
        batch: Most forget images in a step, and most retain images.
        rate: Adam's rate, in units of a normalised pixel.
    """

    shots: int = 5
    steps: int = 60
    batch: int = 32
    rate: float = 0.03


@dataclass(frozen=True)
class PromptPoint:
    """Plain accuracies on test images that carry the prompt.

    Attributes:
        acc_f: On forgotten classes.
        acc_r: On retained classes.
        shuffled_f: `acc_f` with a prompt that was learned from shuffled labels.
    """

    acc_f: float
    acc_r: float
    shuffled_f: float

    @property
    def gain_f(self) -> float:
        """`acc_f` - `shuffled_f`: what the model still knows of the classes."""
        return self.acc_f - self.shuffled_f


def prompted(
    model: nn.Module,
    *,
    train: Samples,
    test: Samples,
    forgotten: Tensor,
    generator: torch.Generator,
    config: PromptConfig = PromptConfig(),
) -> PromptPoint:
    """Learn both prompts, and ask the model about test images that carry them.

    The head is the model's own. A row that a mask has destroyed holds a prototype instead.

    Args:
        model: The model, in eval mode. It isn't changed.
        train: Training images of all classes.
        test: Test images of all classes.
        forgotten: Labels (k,).
        generator: Source of the draws. Both prompts start from the same state.
        config: Hyper-parameters.

    Raises:
        DataError: Training or test images of forgotten or of retained classes are missing.
    """
    for name, samples in (("training", train), ("test", test)):
        gone = int(torch.isin(samples.y, forgotten).sum())
        if gone in (0, len(samples)):
            raise DataError(
                f"a prompt needs {name} images of forgotten and of retained classes, found {gone} "
                f"and {len(samples) - gone}"
            )
    drawn = draw_per_class(train.y, count=config.shots, generator=generator)
    shown = Samples(train.x[drawn], train.y[drawn])
    asked = _with_own_head(model, shown, forgotten=forgotten)
    state = generator.get_state()
    shuffled = torch.randperm(len(shown), generator=generator)
    found = []
    for y in (shown.y, shown.y[shuffled]):
        draws = torch.Generator().set_state(state)
        pattern = _learn(
            asked, Samples(shown.x, y), forgotten=forgotten, generator=draws, config=config
        )
        answers = extract(asked, Samples(test.x + pattern, test.y))
        found.append(
            [right(part.logits, part.y).value for part in split(answers, forgotten=forgotten)]
        )
    return PromptPoint(acc_f=found[0][0], acc_r=found[0][1], shuffled_f=found[1][0])


def _with_own_head(model: nn.Module, shown: Samples, *, forgotten: Tensor) -> nn.Module:
    head = bare_head(model)
    masked = masked_rows(head, forgotten=forgotten)
    if len(masked):
        destroyed, others = split(extract(model, shown), forgotten=masked)
        head = written_head(head, shown=destroyed, retained=others)
    return with_head(model, head).eval().requires_grad_(False)


def _learn(
    model: nn.Module,
    shown: Samples,
    *,
    forgotten: Tensor,
    generator: torch.Generator,
    config: PromptConfig,
) -> Tensor:
    """The pattern (c, h, w). Forget and retain images weigh the same, whatever their number."""
    head = bare_head(model)
    pattern = torch.zeros_like(shown.x[0]).requires_grad_(True)
    optimizer = torch.optim.Adam([pattern], lr=config.rate)
    gone = torch.isin(shown.y, forgotten)
    sides = [gone.nonzero().flatten(), (~gone).nonzero().flatten()]
    for _ in range(config.steps):
        parts = [s[torch.randperm(len(s), generator=generator)[: config.batch]] for s in sides]
        rows = torch.cat(parts)
        logits = margin_logits(head, model(shown.x[rows] + pattern), shown.y[rows])
        losses = F.cross_entropy(logits, shown.y[rows], reduction="none")
        optimizer.zero_grad()
        first = len(parts[0])
        loss = losses[:first].mean() + losses[first:].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return pattern.detach()
