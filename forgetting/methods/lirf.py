"""LIRF: forget in the lower half, and keep what was forgotten in a deposit (Ye et al., ECCV 2022).

The student's lower half (embeddings and blocks) is trained under the frozen upper half:

    L = a CE(forget, wrong) - t AT(forget) + k KD_T(all images, retained classes' logits)
        + v CE(retain) + d [ KD_T(deposit, forgotten classes' logits) + a CE(deposit) ]

AT is the distance between the squared-activation maps of student and teacher at the cut (Zagoruyko
& Komodakis, ICLR 2017). It removes from the lower half what is particular to the forget images. The
*deposit* network reads the student's activations at the cut and learns to name the forgotten
classes, so that they could be given back. It isn't part of the served model; the deposits of all
tasks are in `Learned.carried`.

In the published code of GS-LoRA the deposit has no optimizer, and raw ids instead of the forgotten
ones split the classes. Here it has an optimizer of its own. The paper learns from forget images
only; CE on retain images is GS-LoRA's addition, kept because it helps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.errors import TargetError
from forgetting.methods.distilled import distillation, taught
from forgetting.methods.draws import Draws, label_loss, retained_classes
from forgetting.methods.finetune import Recipe, Terms, answers, finetune
from forgetting.methods.protocol import Budget, Learned, Task
from forgetting.methods.watch import Watch, check_images
from forgetting.training.progress import Tell


class Deposit(nn.Module):
    """The first block of the upper half, with a head for the forgotten classes only."""

    def __init__(self, block: nn.Module, *, width: int, classes: Tensor) -> None:
        super().__init__()
        self.block = copy.deepcopy(block).eval().requires_grad_(True)
        self.norm = nn.LayerNorm(width)
        # Skip the layer's own initial values, which come from the global generator.
        self.head = nn.utils.skip_init(nn.Linear, width, len(classes))  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.classes = tuple(classes.tolist())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the forgotten classes (n, k) from the tokens at the cut (n, t, dim)."""
        logits: Tensor = self.head(self.norm(self.block(tokens)).mean(dim=1))
        return logits


def blocks_of(model: nn.Module) -> nn.Sequential | nn.ModuleList:
    """The model's Transformer blocks.

    Raises:
        TargetError: It has fewer than two.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) < 2:
        raise TargetError(f"{type(model).__name__} has no two `blocks` that could be parted")
    return blocks


@contextmanager
def outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the module returns inside the `with` block, in order."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


def attention_map(tokens: Tensor) -> Tensor:
    """Q / |Q|_2 with Q_t = sum_d h_td^2: (n, t, dim) -> (n, t)."""
    return F.normalize(tokens.square().sum(dim=2), dim=1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """AT: mean over images and tokens of the squared difference of two maps (n, t)."""
    return (student - teacher).square().mean()


@dataclass(frozen=True)
class LIRF:
    """The weights in the equation, and T.

    `labels` is a, `attention` t, `distil` k, `retain` v, `deposit` d, and `temperature` the T of
    KD.
    """

    name: ClassVar[str] = "lirf"
    grid: ClassVar[tuple[Mapping[str, float], ...]] = (
        {"attention": 30.0, "distil": 1.0, "rate": 1e-3},
        {"attention": 3.0, "distil": 1.0, "rate": 1e-3},
        {"attention": 30.0, "distil": 0.1, "rate": 1e-3},
        {"attention": 3.0, "distil": 0.1, "rate": 1e-3},
    )
    labels: float = 0.9
    attention: float = 300.0
    distil: float = 10.0
    retain: float = 5.0
    deposit: float = 0.05
    temperature: float = 10.0
    rate: float = 1e-4

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
        blocks = blocks_of(task.model)
        cut = len(blocks) // 2
        with outputs(blocks_of(task.original)[cut - 1]) as tokens:
            on_forget = taught(task.original, data.forget.x)
        maps = torch.cat([attention_map(part) for part in tokens]).clone()
        width = tokens[0].shape[2]
        on_retain = taught(task.original, data.retain.x)
        kept = retained_classes(on_forget.shape[1], forgotten=data.forgotten)
        gone = torch.unique(data.forget.y)  # ascending
        deposit = Deposit(blocks[cut], width=width, classes=gone).to(data.forget.x.device)

        def distil(student: Tensor, teacher: Tensor) -> Tensor:
            return distillation(student, teacher, temperature=self.temperature)

        def step(model: nn.Module, draws: Draws) -> Terms:
            f, r = draws.forget(), draws.retain()
            with outputs(blocks_of(model)[cut - 1]) as seen:
                forget, retain = answers(model, f, r)
            cells = seen[0][: len(f)]  # (f + r, t, dim) -> (f, t, dim)
            wrong = draws.wrong(len(f), classes=forget.shape[1])
            away = attention_distance(attention_map(cells), maps[f.rows])
            student = torch.cat([forget, retain])[:, kept]
            teacher = torch.cat([on_forget[f.rows], on_retain[r.rows]])[:, kept]
            held = deposit(cells)  # (f, k)
            target = torch.searchsorted(gone, f.y)
            keep = distil(held, on_forget[f.rows][:, gone])
            keep = keep + self.labels * F.cross_entropy(held, target)
            return Terms(
                forget=self.labels * label_loss(model, forget, wrong) - self.attention * away,
                retain=self.distil * distil(student, teacher)
                + self.retain * label_loss(model, retain, r.y)
                + self.deposit * keep,
            )

        return finetune(
            task,
            step,
            recipe=Recipe(self.rate),
            budget=budget,
            generator=generator,
            watch=watch,
            trained=_lower(task.model, cut),
            beside=list(deposit.parameters()),
            carried=(*(task.carried or ()), deposit),
        )


def _lower(model: nn.Module, cut: int) -> Callable[[str], bool]:
    """Whether a parameter lies below the cut: in an embedding or in a lower block."""
    ups = [f"blocks.{i}." for i in range(cut, len(blocks_of(model)))]
    after = ("norm.", "fc_norm.", "head.", "head_drop.", "attn_pool.")

    def below(name: str) -> bool:
        return not name.startswith((*ups, *after))

    return below
