"""The frozen prefix: all that lies below the lowest changed block is computed once, exactly.

Only timm's plain `VisionTransformer` can be cut between two blocks. The prefix of any other model
is empty: its cut is at the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

PIXELS = -1


def lowest_cut(model: nn.Module) -> int:
    """The cut before the first block, or `PIXELS` where the model can't be cut."""
    plain = isinstance(model, VisionTransformer) and (
        type(model).forward_features is VisionTransformer.forward_features
    )
    return 0 if plain else PIXELS


def advance(model: nn.Module, x: Tensor, *, start: int, stop: int, batch: int = 256) -> Tensor:
    """Compute the activations at cut `stop` from those at cut `start`, without gradients.

    Args:
        model: The model.
        x: If `start` is `PIXELS`, n > 0 images (n, c, h, w); else tokens (n, t, dim) that enter
            block `start`.
        start: A cut.
        stop: The same cut or a higher one.
        batch: Samples at a time.
    """
    if start == stop:
        return x
    vit: Any = model
    parts = []
    with torch.no_grad():
        for i in range(0, len(x), batch):
            part = x[i : i + batch]
            if start == PIXELS:
                part = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(part))))
            for block in vit.blocks[max(start, 0) : stop]:
                part = block(part)
            parts.append(part)
    return torch.cat(parts)


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch.

    Attributes:
        blocks: The read-out of each block from the cut on (n, dim): the token that the head will
            read, or the mean of all tokens. Empty for a model that can't be cut.
        embedding: What the head reads (n, dim).
        logits: (n, classes).
    """

    blocks: tuple[Tensor, ...] = field(repr=False)
    embedding: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)


def outputs_from(model: nn.Module, x: Tensor, *, cut: int) -> Outputs:
    """Everything from a cut on. `blocks[i]` is the read-out of block `cut + i`."""
    vit: Any = model
    blocks = []
    if cut == PIXELS:
        x = vit.forward_features(x)
    else:
        by_token = getattr(vit, "global_pool", "token") == "token"
        for block in vit.blocks[cut:]:
            x = block(x)
            blocks.append(x[:, 0] if by_token else x[:, vit.num_prefix_tokens :].mean(dim=1))
        x = vit.norm(x)
    embedding: Tensor = vit.forward_head(x, pre_logits=True)
    logits: Tensor = vit.get_classifier()(embedding)
    return Outputs(tuple(blocks), embedding, logits)
