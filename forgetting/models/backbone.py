"""The backbone: a frozen timm ViT with its head, class names and preprocessing.

On disk a backbone is a directory of two files: `backbone.json` (model name, arguments, classes,
preprocessing, fingerprint) and `model.safetensors`. The fingerprint names the weights: SHA-256
over the sorted tensors' names, dtypes, shapes and bytes. Everything that is learned for a backbone
quotes its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from forgetting.data.preprocess import Preprocess, preprocess_of
from forgetting.durable_file import replace_file
from forgetting.errors import BackboneError
from forgetting.models import face_transformer as _face_transformer  # noqa: F401 (timm learns its name)
from forgetting.models import lite_hybrid as _lite_hybrid  # noqa: F401 (timm learns its name)

SPEC_FILE = "backbone.json"
WEIGHTS_FILE = "model.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone needs beside its weights.

    Attributes:
        model: A timm model name.
        model_args: Arguments that differ from timm's defaults, as JSON values. The numbers of
            classes and of input channels are left out: they follow from the other fields.
        classes: Class names in the order of the head's rows.
        preprocess: See `Preprocess`.
        edit_in_head: A feature edit was folded into the head, by sealing. So the logits are those
            after the edit, and the embedding is the one before it.
    """

    model: str
    model_args: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    edit_in_head: bool = False


@dataclass(frozen=True)
class Backbone:
    """A frozen model (eval mode, no gradients), its spec and its fingerprint `sha256:<hex>`."""

    model: nn.Module = field(repr=False)
    spec: BackboneSpec
    fingerprint: str


def build_model(spec: BackboneSpec) -> nn.Module:
    """The untrained timm model that `spec` describes.

    Raises:
        BackboneError: timm doesn't know the name or refuses the arguments, or it isn't a ViT.
    """
    try:
        model = timm.create_model(
            spec.model,
            pretrained=False,
            num_classes=len(spec.classes),
            in_chans=spec.preprocess.input_size[0],
            **dict(spec.model_args),
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"timm can't build model {spec.model!r} with arguments {dict(spec.model_args)}: {error}"
        ) from error
    return _as_module(model, spec.model)


def freeze(model: nn.Module, spec: BackboneSpec) -> Backbone:
    """Freeze a trained model and name it by its fingerprint.

    Raises:
        BackboneError: The model isn't a ViT with a linear head, or the head's rows and the class
            names differ in number.
    """
    rows = _head(model, spec.model).out_features
    if rows != len(spec.classes):
        raise BackboneError(
            f"{spec.model}: the head has {rows} rows but {len(spec.classes)} class names were "
            "given; give one name per row, in the order of the rows"
        )
    model = model.eval().requires_grad_(False)
    return Backbone(model=model, spec=spec, fingerprint=fingerprint(model))


def fingerprint(model: nn.Module) -> str:
    """`sha256:<hex>` over the sorted tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        head = f"{name}\n{flat.dtype}\n{tuple(tensor.shape)}\n"
        digest.update(head.encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass.

    Args:
        model: A ViT as `load_backbone` or `load_timm` gives it.
        x: Images (n, c, h, w).

    Returns:
        The embedding that the head reads (n, dim), and the logits (n, classes).
    """
    vit: Any = model
    embedding: Tensor = vit.forward_head(vit.forward_features(x), pre_logits=True)
    logits: Tensor = vit.get_classifier()(embedding)  # (n, dim) -> (n, classes)
    return embedding, logits


def save_backbone(directory: str | Path, backbone: Backbone) -> None:
    """Write a backbone durably: when this returns, a power cut takes nothing of it back.

    `backbone.json` comes last: without it the directory is no backbone.

    Raises:
        OSError: It can't be written.
    """
    folder = Path(directory)
    tensors = {name: t.contiguous() for name, t in backbone.model.state_dict().items()}
    replace_file(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))
    facts = {"format": _FORMAT, "fingerprint": backbone.fingerprint, **asdict(backbone.spec)}
    replace_file(folder / SPEC_FILE, json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n")


def load_backbone(directory: str | Path) -> Backbone:
    """Read a directory that `save_backbone` wrote.

    Raises:
        BackboneError: A file is missing or damaged, the tensors don't fit the model, or they
            aren't those that the fingerprint names.
    """
    folder = Path(directory)
    spec, expected = _read_spec(folder / SPEC_FILE)
    model = build_model(spec)
    _load_weights(model, folder / WEIGHTS_FILE)
    backbone = freeze(model, spec)
    if backbone.fingerprint != expected:
        raise BackboneError(
            f"{folder / WEIGHTS_FILE} holds weights with fingerprint {backbone.fingerprint}, but "
            f"{SPEC_FILE} names {expected}: one of the two files was changed"
        )
    return backbone


def load_timm(
    model: str,
    *,
    weights: str | Path | None,
    labels: str | Path,
    model_args: Mapping[str, Any] | None = None,
) -> Backbone:
    """Any timm ViT as a backbone.

    Args:
        model: A timm model name, such as `vit_base_patch16_224`.
        weights: A local safetensors file with timm's key names; None downloads the pre-trained
            weights from the hub.
        labels: A text file with one class name per line, in the order of the head's rows.
        model_args: Arguments for the timm model beside the number of classes and channels.

    Raises:
        BackboneError: A file is missing, the keys or the number of labels don't fit, or it isn't
            a ViT with a linear head.
    """
    classes = read_labels(labels)
    arguments = dict(model_args or {})
    try:
        built = timm.create_model(
            model, pretrained=weights is None, num_classes=len(classes), **arguments
        )
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise BackboneError(f"timm can't build or download model {model!r}: {error}") from error
    module = _as_module(built, model)
    if weights is not None:
        _load_weights(module, Path(weights))
    elif _pretrained_classes(module) != len(classes):
        raise BackboneError(
            f"the hub's head of {model!r} has {_pretrained_classes(module)} rows but {labels} has "
            f"{len(classes)} names; give one name per row, in the order of the rows"
        )
    preprocess = preprocess_of(module)
    arguments.pop("in_chans", None)  # follows from preprocess.input_size
    return freeze(module, BackboneSpec(model, arguments, classes, preprocess))


def _as_module(model: Any, name: str) -> nn.Module:
    _head(model, name)
    module: nn.Module = model
    return module


def _head(model: Any, name: str) -> nn.Linear:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(model, "forward_head"):
        raise BackboneError(
            f"{name} ({type(model).__name__}) is not a timm ViT: it has no sequence of `blocks` "
            "and no `forward_head`"
        )
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise BackboneError(
            f"{name} ({type(model).__name__}) has no single linear head but "
            f"{type(head).__name__}; a distilled or head-less model can't be used"
        )
    return head


def _pretrained_classes(model: Any) -> int:
    return int(model.pretrained_cfg.get("num_classes", -1))


def read_labels(file: str | Path) -> tuple[str, ...]:
    """Class names, one a line.

    Raises:
        BackboneError: It can't be read, has fewer than 2 names, or one of them twice.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BackboneError(f"labels file {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BackboneError(f"labels file {path} is not UTF-8 text") from error
    names = tuple(line.strip() for line in lines if line.strip())
    _check_classes(names, str(path))
    return names


def _check_classes(names: Sequence[str], where: str) -> None:
    if len(names) < 2:
        raise BackboneError(f"{where}: expected at least 2 class names, found {len(names)}")
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise BackboneError(f"{where}: class names must differ; doubled: {', '.join(doubled[:5])}")


def _read_spec(path: Path) -> tuple[BackboneSpec, str]:
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BackboneError(
            f"no backbone in {path.parent}: {path.name} is missing; make one with pretraining or "
            "name a timm model"
        ) from error
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} can't be read as JSON: {error}") from error
    try:
        if facts["format"] != _FORMAT:
            raise BackboneError(f"{path}: format {facts['format']} is not {_FORMAT}")
        p = facts["preprocess"]
        channels, height, width = (int(n) for n in p["input_size"])
        preprocess = Preprocess(
            input_size=(channels, height, width),
            mean=tuple(float(v) for v in p["mean"]),
            std=tuple(float(v) for v in p["std"]),
            interpolation=str(p["interpolation"]),
            crop_pct=float(p["crop_pct"]),
            crop_mode=str(p["crop_mode"]),
        )
        classes = tuple(str(name) for name in facts["classes"])
        spec = BackboneSpec(
            str(facts["model"]),
            dict(facts["model_args"]),
            classes,
            preprocess,
            # Folders that an older version wrote don't say it.
            edit_in_head=facts.get("edit_in_head", False) is not False,
        )
        expected = str(facts["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"{path}: field missing or of the wrong kind: {error}") from error
    _check_classes(classes, str(path))
    return spec, expected


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise BackboneError(f"weights file {path} does not exist") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{path} is not a whole safetensors file: {error}") from error
    expected = model.state_dict()
    complaints = [f"missing {k}" for k in expected.keys() - tensors.keys()]
    complaints += [f"unexpected {k}" for k in tensors.keys() - expected.keys()]
    complaints += [
        f"{k} has shape {tuple(tensors[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected.keys() & tensors.keys()
        if tensors[k].shape != expected[k].shape
    ]
    if complaints:
        shown = "; ".join(sorted(complaints)[:5])
        more = f" and {len(complaints) - 5} more" if len(complaints) > 5 else ""
        raise BackboneError(f"{path} doesn't fit the model: {shown}{more}")
    model.load_state_dict(tensors)
