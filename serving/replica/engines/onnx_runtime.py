"""ONNX Runtime on the CPU: all releases share one session, which holds no weights.

Each call feeds the weights to the session: the release's tensors where it changed some, and the
PyTorch model's own tensors for the rest. Neither is copied.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from onnxruntime import InferenceSession, IOBinding, OrtValue
from torch import Tensor

from forgetting.adapter.stack import EffectiveState
from forgetting.models.backbone import Backbone, features_and_logits
from serving.replica.engines import EngineError
from serving.replica.engines.onnx_graph import (
    FEATURES,
    IMAGES,
    LOGITS,
    export,
    keep_graph,
    kept_graph,
)
from serving.replica.engines.tensors import bare_tensors, changed_tensors

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""How far features and logits may be from PyTorch's: absolute plus relative."""
_CHECK_BATCHES = (1, 3)
_QUIET = 3  # errors only


class OnnxForward:
    """The forward pass of one release. Thread-safe."""

    def __init__(self, session: InferenceSession, feeds: Mapping[str, OrtValue]) -> None:
        self._session = session
        self._feeds = feeds
        # Binding a hundred tensors takes longer than a small model's pass, so bindings are reused.
        # There are as many as there were calls at the same time.
        self._idle: deque[IOBinding] = deque()

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K) float32."""
        (logits,) = self._run(images, LOGITS)
        return logits

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> features (B, d) and logits (B, K), float32."""
        features, logits = self._run(images, FEATURES, LOGITS)
        return features, logits

    def _run(self, images: Tensor, *names: str) -> list[Tensor]:
        """One pass; returns the outputs `names`."""
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = self._bound()
        binding.bind_ortvalue_input(IMAGES, _value(images))
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = [torch.from_numpy(value.numpy()) for value in binding.get_outputs()]
        self._idle.append(binding)
        return outputs

    def _bound(self) -> IOBinding:
        binding = self._session.io_binding()
        for name, value in self._feeds.items():
            binding.bind_ortvalue_input(name, value)
        return binding


class OnnxEngine:
    def __init__(self, backbone: Backbone, *, threads: int = 1, graphs: Path | None = None) -> None:
        """
        Args:
            backbone: The bare backbone; its tensors are not copied.
            threads: Number of threads of one forward pass.
            graphs: Folder in which the graph is kept for the next start; None: don't keep it.

        Raises:
            EngineError: The model can't be written as a graph, or the graph's outputs differ from
                PyTorch's.
        """
        self._tensors = bare_tensors(backbone.model)
        graph = None if graphs is None else kept_graph(backbone, graphs)
        session = None if graph is None else _open_kept(graph, threads)
        if session is None:
            graph = export(backbone)
            session = _open(graph, threads)
            if graphs is not None:
                try:
                    keep_graph(backbone, graphs, graph)
                except OSError as error:
                    log.warning("the graph can't be saved for the next start: %s", error)
        self._session = session
        self._inputs = {node.name for node in session.get_inputs()} - {IMAGES}
        self._feeds = {n: _value(t) for n, t in self._tensors.items() if n in self._inputs}
        self._check(backbone)

    def build(self, state: EffectiveState) -> OnnxForward:
        """See `Engine.build`."""
        changed = changed_tensors(state, self._tensors)
        unread = changed.keys() - self._inputs
        if unread:
            raise EngineError(f"the backbone's forward pass doesn't read {min(unread)}")
        fed = {name: _value(tensor) for name, tensor in changed.items()}
        return OnnxForward(self._session, self._feeds | fed)

    def _check(self, backbone: Backbone) -> None:
        """Compare the graph's features and logits with the model's, for one image and for several.
        Raises `EngineError`."""
        bare = self.build(EffectiveState())
        noise = torch.Generator().manual_seed(0)
        for batch in _CHECK_BATCHES:
            images = torch.randn(batch, *backbone.spec.preprocess.input_size, generator=noise)
            with torch.inference_mode():
                feature, _ = features_and_logits(backbone.model, images)
                expected = {"logits": backbone.model(images), "features": feature}
            features, logits = bare.embed(images)
            for what, found in {"logits": logits, "features": features}.items():
                if not _close(found, expected[what]):
                    raise EngineError(
                        f"the ONNX graph of {backbone.spec.model} doesn't give PyTorch's {what} "
                        f'(for {batch} images at a time): set engine.name to "torch"'
                    )


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE
    )


def _open(graph: bytes, threads: int) -> InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin take CPU time from threads that have work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _QUIET
    return InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _open_kept(graph: bytes, threads: int) -> InferenceSession | None:
    """A session of the kept graph; None if the file is damaged, so that it is written again."""
    try:
        return _open(graph, threads)
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        log.warning("the kept ONNX graph is damaged, writing it again: %s", type(error).__name__)
        return None


def _value(tensor: Tensor) -> OrtValue:
    """The tensor as ONNX Runtime's value. It shares the memory and keeps the tensor alive."""
    return OrtValue.ortvalue_from_numpy(tensor.detach().float().contiguous().numpy())
