"""Read a checkpoint of the GS-LoRA papers' face backbone as a timm model.

The checkpoint is a torch state dict of the authors' `ViT_face`. Its patches are flattened in
(row, column, channel) order, and the CosFace weight is called `loss.weight`. Only tensors are
unpickled.

After a task the authors' checkpoint also holds `lora_A` and `lora_B` next to the FFN's weights.
They write it in eval mode, in which their LoRA layers have already added the product to the weight.
So these keys repeat what the weights hold, and they are left out here. A checkpoint written in
training mode looks the same, but is read as the model *before* that task.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from forgetting.data.preprocess import Preprocess
from forgetting.errors import BackboneError
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze, read_labels
from forgetting.models.face_transformer import NAME

_CHANNELS = 3
_PATCHES = "patch_to_embedding.weight"
_REDUNDANT = re.compile(r"transformer\.layers\.\d+\.1\.fn\.fn\.net\.[03]\.lora_[AB]")
# Their keys to ours, outside the blocks.
_ENDS = {
    "cls_token": "cls_token",
    "pos_embedding": "pos_embed",
    _PATCHES: "patch_embed.proj.weight",
    "patch_to_embedding.bias": "patch_embed.proj.bias",
    "mlp_head.0.weight": "norm.weight",
    "mlp_head.0.bias": "norm.bias",
    "loss.weight": "head.weight",
}
# Their keys in `transformer.layers.<i>` to ours in `blocks.<i>`.
_BLOCK = {
    "0.fn.norm.weight": "norm1.weight",
    "0.fn.norm.bias": "norm1.bias",
    "0.fn.fn.to_qkv.weight": "attn.qkv.weight",
    "0.fn.fn.to_out.0.weight": "attn.proj.weight",
    "0.fn.fn.to_out.0.bias": "attn.proj.bias",
    "1.fn.norm.weight": "norm2.weight",
    "1.fn.norm.bias": "norm2.bias",
    "1.fn.fn.net.0.weight": "mlp.fc1.weight",
    "1.fn.fn.net.0.bias": "mlp.fc1.bias",
    "1.fn.fn.net.3.weight": "mlp.fc2.weight",
    "1.fn.fn.net.3.bias": "mlp.fc2.bias",
}


def load_face_transformer(path: str | Path, labels: str | Path, *, num_heads: int = 8) -> Backbone:
    """The authors' checkpoint as a backbone. The tensors give all sizes but the number of heads.

    Args:
        path: A torch file with the state dict.
        labels: A text file with one class name per line, in the order of the rows of
            `loss.weight`.
        num_heads: Heads of the attention.

    Raises:
        BackboneError: A file is missing or damaged, a key is missing or unknown, a tensor has the
            wrong shape or isn't finite, or the number of labels isn't the number of rows.
    """
    theirs = _read(Path(path))
    keys = _key_map(Path(path), theirs)
    classes = read_labels(labels)
    arguments = _sizes(Path(path), theirs)
    arguments["num_heads"] = num_heads
    rows = len(theirs["loss.weight"])
    if rows != len(classes):
        raise BackboneError(
            f"{path}: loss.weight has {rows} rows but {labels} has {len(classes)} names; give one "
            "name per row, in the order of the rows"
        )
    spec = BackboneSpec(NAME, arguments, classes, face_preprocess(int(arguments["img_size"])))
    model = build_model(spec)
    ours = {keys[key]: tensor for key, tensor in theirs.items()}
    ours["patch_embed.proj.weight"] = _as_convolution(
        theirs[_PATCHES], side=int(arguments["patch_size"])
    )
    names = {ours_: theirs_ for theirs_, ours_ in keys.items()}
    for name, expected in model.state_dict().items():
        if ours[name].shape != expected.shape:
            raise BackboneError(
                f"{path}: {names[name]} has shape {tuple(theirs[names[name]].shape)}, which "
                "doesn't go with the other tensors"
            )
    model.load_state_dict(ours)
    return freeze(model, spec)


def face_preprocess(img_size: int) -> Preprocess:
    """The papers' input: RGB pixels in 0..1, not normalised, nothing cut."""
    return Preprocess(
        input_size=(_CHANNELS, img_size, img_size),
        mean=(0.0,) * _CHANNELS,
        std=(1.0,) * _CHANNELS,
        crop_mode="squash",
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BackboneError(f"checkpoint {path} does not exist") from error
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(f"{path} is not a whole torch file of tensors: {reason}") from error
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise BackboneError(
            f"{path} holds {type(found).__name__}, expected a state dict: a tensor for each name"
        )
    tensors = {str(key): t.float() for key, t in found.items() if not _REDUNDANT.fullmatch(key)}
    broken = [key for key, t in tensors.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise BackboneError(f"{path}: {broken[0]} has numbers that are not finite")
    return tensors


def _key_map(path: Path, theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Their keys to ours, for every block in the checkpoint."""
    layers = [re.match(r"transformer\.layers\.(\d+)\.", key) for key in theirs]
    depth = 1 + max((int(layer[1]) for layer in layers if layer), default=0)
    keys = dict(_ENDS)
    for i in range(depth):
        keys |= {f"transformer.layers.{i}.{t}": f"blocks.{i}.{o}" for t, o in _BLOCK.items()}
    complaints = [f"missing {key}" for key in sorted(keys.keys() - theirs.keys())]
    complaints += [f"unexpected {key}" for key in sorted(theirs.keys() - keys.keys())]
    if complaints:
        more = f" and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise BackboneError(
            f"{path} has not the layout of the authors' face backbone: "
            f"{'; '.join(complaints[:5])}{more}"
        )
    return keys


def _sizes(path: Path, theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Arguments of the model, from the tensors' shapes."""
    for key, axes in ((_PATCHES, 2), ("pos_embedding", 3), ("loss.weight", 2)):
        if theirs[key].ndim != axes:
            raise BackboneError(f"{path}: {key} has {theirs[key].ndim} axes, expected {axes}")
    dim, numbers = theirs[_PATCHES].shape
    side = math.isqrt(numbers // _CHANNELS)
    across = math.isqrt(theirs["pos_embedding"].shape[1] - 1)
    if side * side * _CHANNELS != numbers or across**2 + 1 != theirs["pos_embedding"].shape[1]:
        raise BackboneError(
            f"{path}: {numbers} numbers a patch and {theirs['pos_embedding'].shape[1]} positions; "
            f"expected square patches of {_CHANNELS} channels, in a square, and a class token"
        )
    hidden = len(theirs["transformer.layers.0.1.fn.fn.net.0.bias"])
    return {
        "img_size": across * side,
        "patch_size": side,
        "embed_dim": dim,
        "depth": 1 + max(int(k.split(".")[2]) for k in theirs if k.startswith("transformer.")),
        "mlp_ratio": hidden / dim,
    }


def _as_convolution(weight: Tensor, *, side: int) -> Tensor:
    """(dim, row * column * channel) -> (dim, channel, row, column)."""
    return weight.reshape(len(weight), side, side, _CHANNELS).permute(0, 3, 1, 2).contiguous()
