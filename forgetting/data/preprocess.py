"""How an image becomes a model's input. Training, measuring and serving all use this one way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from timm.data.transforms import MaybeToTensor
from timm.layers import HybridEmbed
from torch import Tensor, nn
from torchvision.transforms import Normalize


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input.

    Attributes:
        input_size: (channels, height, width) of the tensor.
        mean: Per channel, in the 0..1 scale of the pixels.
        std: Per channel, in the 0..1 scale of the pixels.
        interpolation: A name that timm knows: `bicubic`, `bilinear`, `nearest`, ...
        crop_pct: Share of the resized image that the crop keeps, 0 < crop_pct <= 1.
        crop_mode: timm's `center`, `squash` (changes the aspect ratio, cuts nothing) or `border`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


def eight_bits(image: Image.Image) -> Image.Image:
    """Reduce a grey image of 16 bits to its upper 8 bits. Any other image stays as it is."""
    if not image.mode.startswith("I;16"):
        return image
    # Pillow's own conversion cuts all values off at 255, so that nearly everything turns white.
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    """timm's transform for inference, with the same result to the last bit.

    It is faster: timm's last two steps, the tensor and its normalisation, are done in place.

    Returns:
        A function from a PIL image of any mode and size to a float32 tensor (c, h, w).
    """
    mode = "L" if preprocess.input_size[0] == 1 else "RGB"
    steps = timm.data.create_transform(
        input_size=preprocess.input_size,
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    *sizing, to_tensor, normalize = steps.transforms
    if not isinstance(to_tensor, MaybeToTensor) or not isinstance(normalize, Normalize):
        raise TypeError(
            "timm's transform should end in MaybeToTensor and Normalize; it ends in "
            f"{to_tensor} and {normalize}"
        )
    height, width = preprocess.input_size[1:]
    cut = any(math.floor(side / preprocess.crop_pct) != side for side in (height, width))
    mean = np.array(preprocess.mean, np.float32)[:, None, None]
    std = np.array(preprocess.std, np.float32)[:, None, None]

    def apply(image: Image.Image) -> Tensor:
        image = eight_bits(image)
        # Without RGBA in between, a palette image's transparency would become a colour.
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image if image.mode == mode else image.convert(mode)
        if cut or image.size != (width, height):  # otherwise these steps only copy it
            for step in sizing:
                image = step(image)
        values = np.asarray(image).reshape(image.height, image.width, len(mean))
        pixels = np.empty((len(mean), image.height, image.width), np.float32)
        np.copyto(pixels, values.transpose(2, 0, 1))  # (h, w, c) -> (c, h, w)
        pixels /= 255
        pixels -= mean
        pixels /= std
        return torch.from_numpy(pixels)

    return apply


def preprocess_of(model: nn.Module) -> Preprocess:
    """The preprocessing that timm names for a ViT, at the input size that it was built with."""
    config = timm.data.resolve_data_config({}, model=model)
    embed: Any = model.patch_embed
    # A hybrid's projection reads the maps of its stem, not the image.
    hybrid = isinstance(embed, HybridEmbed)
    channels = int(embed.in_chans if hybrid else embed.proj.in_channels)
    height, width = embed.img_size if embed.img_size is not None else config["input_size"][1:]
    return Preprocess(
        input_size=(channels, int(height), int(width)),
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
        crop_mode=str(config["crop_mode"]),
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """timm gives statistics of three channels. A grey model takes their mean."""
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (float(sum(values) / len(values)),) * channels
