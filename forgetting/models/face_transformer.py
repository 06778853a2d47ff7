"""The Face Transformer of the GS-LoRA papers (ViT-P8S8) in timm's terms, with its cosine head.

Y. Zhong, W. Deng, Face Transformer for Recognition, 2021, as in the code of Zhao et al., Continual
Forgetting for Pre-trained Vision Models, CVPR 2024. It differs from a plain `VisionTransformer` in
three things: the attention's scale, dim^-1/2 instead of head_dim^-1/2; the scale of the initial
tokens; and the head. Importing this module registers its name with `timm.create_model`.
`face_checkpoint` reads weights in the authors' layout.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

NAME = "face_transformer_p8s8"


class CosineHead(nn.Linear):
    """CosFace: z_k = s cos(e, W_k). Training takes the margin m off the label's cosine.

    H. Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018. The
    class is an `nn.Linear` without bias, so that other code finds the head's rows. Its logits are
    not e W^T.

    Attributes:
        scale: s; the logits lie in [-s, s].
        margin: m, in units of the cosine.
    """

    def __init__(
        self, in_features: int, out_features: int, *, scale: float = 64.0, margin: float = 0.35
    ) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale
        self.margin = margin

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Plain logits s cos(e, W_k) (n, classes) of embeddings (n, dim)."""
        # (n, dim) x (dim, classes) -> (n, classes)
        return self.scale * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))

    def margin_logits(self, embedding: Tensor, y: Tensor) -> Tensor:
        """s (cos(e, W_k) - m [k = y]) (n, classes). The papers train and count with these.

        Args:
            embedding: (n, dim).
            y: The labels (n,).
        """
        penalty = F.one_hot(y, self.out_features) * (self.scale * self.margin)
        return self.forward(embedding) - penalty

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}, margin={self.margin}"


class FaceTransformer(VisionTransformer):
    """A `VisionTransformer` with the attention's scale, the tokens and the head of the original.

    Linears are initialised as in PyTorch. The class token and the positions are drawn from N(0, 1).
    """

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        pos_drop_rate: float,
        proj_drop_rate: float,
        scale: float,
        margin: float,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            class_token=True,
            global_pool="token",
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            weight_init="skip",
        )
        nn.init.normal_(self.cls_token)
        nn.init.normal_(self.pos_embed)
        for block in self.blocks:
            # The attention itself scales by (dim / heads)^-1/2, fused or not.
            block.attn.q_norm = _Scaled(num_heads**-0.5)
        self._scale, self._margin = scale, margin
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's hook for another head: a new cosine head, or none for 0 classes."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes > 0:
            like: Tensor = self.pos_embed
            head = CosineHead(self.embed_dim, num_classes, scale=self._scale, margin=self._margin)
            self.head = head.to(device=like.device, dtype=like.dtype).train(self.training)


class _Scaled(nn.Module):
    """x -> factor * x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@register_model
def face_transformer_p8s8(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    *,
    num_classes: int = 100,
    in_chans: int = 3,
    img_size: int = 112,
    patch_size: int = 8,
    embed_dim: int = 512,
    depth: int = 6,
    num_heads: int = 8,
    mlp_ratio: float = 4.0,
    pos_drop_rate: float = 0.1,
    proj_drop_rate: float = 0.1,
    scale: float = 64.0,
    margin: float = 0.35,
) -> FaceTransformer:
    """The papers' backbone. `timm.create_model` calls this, and gives the first four arguments.

    Args:
        pretrained: Must be False: timm can't download the authors' weights.
        pretrained_cfg: timm's; not used.
        pretrained_cfg_overlay: timm's; not used.
        cache_dir: timm's; not used.
        num_classes: Rows of the head.
        in_chans: Channels of the image.
        img_size: Pixels of a side.
        patch_size: Pixels of a patch's side; patches don't overlap.
        embed_dim: Width of a token and of the embedding.
        depth: Blocks.
        num_heads: Heads of the attention; divides `embed_dim`.
        mlp_ratio: Width of the FFN in units of `embed_dim`.
        pos_drop_rate: Dropout after the positions were added.
        proj_drop_rate: Dropout after the attention, inside and after the FFN.
        scale: Of the cosine head.
        margin: Of the cosine head.

    Raises:
        ValueError: Pre-trained weights were asked for, or the sizes don't divide each other.
    """
    if pretrained:
        raise ValueError(
            f"{NAME} has no weights to download; give a file of the authors' checkpoint"
        )
    if embed_dim % num_heads or img_size % patch_size:
        raise ValueError(
            f"num_heads {num_heads} must divide embed_dim {embed_dim}, and patch_size "
            f"{patch_size} must divide img_size {img_size}"
        )
    model = FaceTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        pos_drop_rate=pos_drop_rate,
        proj_drop_rate=proj_drop_rate,
        scale=scale,
        margin=margin,
    )
    model.pretrained_cfg = model.default_cfg = _data_facts(in_chans, img_size, num_classes)
    return model


def _data_facts(in_chans: int, img_size: int, num_classes: int) -> dict[str, Any]:
    """The preprocessing in timm's form: pixels in 0..1, no normalisation, no crop."""
    return {
        "architecture": NAME,
        "num_classes": num_classes,
        "input_size": (in_chans, img_size, img_size),
        "mean": (0.0,) * in_chans,
        "std": (1.0,) * in_chans,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
