"""Writes a backbone as an ONNX graph without weights: every parameter is an input of the graph.

So the graph holds nothing that the backbone has learned and may be kept in a file; all releases
share it; and its inputs are the PyTorch model's own tensors, not copies. Each linear is written as
one GEMM over all tokens, which reads the weight in PyTorch's layout, (out, in).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import warnings
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.erasure.edit import EditLayer
from forgetting.models.backbone import Backbone, features_and_logits
from registry.store.durable_file import write_durably
from serving.replica.engines import EngineError
from serving.replica.engines.tensors import editable_copy

IMAGES, FEATURES, LOGITS = "images", "features", "logits"
_OPSET = 17  # the first with LayerNormalization as one operator
_FORMAT = 2
_EXAMPLE_BATCH = 2  # not 1: the exporter might treat a size of 1 as a constant


class _FlatLinear(nn.Module):
    """A linear over all tokens of all images at once."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.width_in, self.width_out = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        # (.., in) -> (n, in) @ (in, out) -> (.., out)
        flat = F.linear(x.reshape(-1, self.width_in), self.weight, self.bias)
        return flat.reshape(*x.shape[:-1], self.width_out)


class _Function(nn.Module):
    """The model as a function of the images and its parameters; it holds no parameters itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for path, module in list(model.named_modules()):
            if type(module) is nn.Linear:  # a subclass computes something else
                model.set_submodule(path, _FlatLinear(module))
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # timm's plain attention, in single operators
        self.model = model
        self.places: list[tuple[nn.Module, str]] = []
        self.tensors: dict[str, Tensor] = {}
        for path, module in model.named_modules():
            own = module._buffers if isinstance(module, EditLayer) else module._parameters
            for name, tensor in own.items():
                if tensor is not None:
                    self.places.append((module, name))
                    self.tensors[f"{path}.{name}" if path else name] = tensor.detach()
        for module, name in self.places:
            module._parameters.pop(name, None)
            module._buffers.pop(name, None)

    def forward(self, images: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        for (module, name), tensor in zip(self.places, tensors, strict=True):
            module.__dict__[name] = tensor
        return features_and_logits(self.model, images)


def export(backbone: Backbone) -> bytes:
    """The graph: `images` (n, C, H, W) and the tensors by their names -> `features` (n, d), which
    the head reads, and `logits` (n, K).

    Raises:
        EngineError: The model has parts that ONNX has no operator for.
    """
    function = _Function(editable_copy(backbone.model)).eval()
    images = torch.zeros(_EXAMPLE_BATCH, *backbone.spec.preprocess.input_size)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(None),
            torch.no_grad(),
        ):
            written = Path(folder) / "graph.onnx"
            # The exporter warns of each Python number in the model's code, and that it is
            # deprecated. The newer exporter takes ten times as long and needs two more packages.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                function,
                (images, *function.tensors.values()),
                written,
                dynamo=False,
                input_names=[IMAGES, *function.tensors],
                output_names=[FEATURES, LOGITS],
                dynamic_axes={IMAGES: {0: "n"}, FEATURES: {0: "n"}, LOGITS: {0: "n"}},
                opset_version=_OPSET,
            )
            return written.read_bytes()
    except Exception as error:  # tracing runs the model's code, which may raise anything
        first = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"{backbone.spec.model} can't be written as an ONNX graph "
            f'({type(error).__name__}: {first}): set engine.name to "torch"'
        ) from error


def graph_name(backbone: Backbone) -> str:
    """A name for the graph of this kind of backbone: it depends on shapes, buffers and versions,
    not on weights."""
    spec = backbone.spec
    digest = hashlib.sha256()
    facts = [
        [_FORMAT, torch.__version__, timm.__version__],
        [spec.model, dict(spec.model_args), list(spec.preprocess.input_size)],
        [[name, list(tensor.shape)] for name, tensor in backbone.model.named_parameters()],
    ]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, buffer in backbone.model.named_buffers():  # buffers are in the graph
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
        digest.update(
            buffer.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:24]


def kept_graph(backbone: Backbone, folder: Path) -> bytes | None:
    """The graph that an earlier start kept in `folder`; None if there is none."""
    try:
        return (folder / f"{graph_name(backbone)}.onnx").read_bytes()
    except OSError:
        return None


def keep_graph(backbone: Backbone, folder: Path, graph: bytes) -> None:
    """Keep a graph for the next start. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{graph_name(backbone)}.onnx", graph)
