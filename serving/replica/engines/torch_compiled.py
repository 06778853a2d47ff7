"""PyTorch, compiled by TorchInductor once for the backbone, with the tensors as arguments.

Releases share what was compiled. Compiling takes 25 to 50 seconds on a CPU for each of three kinds
of batch, and needs a C++ compiler; so `auto` never chooses this engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forgetting.adapter.stack import EffectiveState
from serving.replica.engines import EngineError
from serving.replica.engines.tensors import WithFeatures, changed_tensors, editable_copy
from serving.replica.engines.torch_eager import on_device, open_device

_WARM_BATCHES = (1, 2, 3)
"""Inductor compiles three times: for one image, for the next size, and for all sizes after that."""

_Compiled = Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
"""Tensors by name, and images (B, C, H, W) -> features (B, d) and logits (B, K)."""


@dataclass(frozen=True)
class CompiledForward:
    """The forward pass of one release."""

    run: _Compiled
    tensors: dict[str, Tensor]
    device: torch.device
    bfloat16: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K) float32, on the CPU."""
        return self.embed(images)[1]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> features (B, d) and logits (B, K), float32, on the CPU."""
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16),
        ):
            # Inductor would compile again for other strides.
            here = images.contiguous().to(self.device, non_blocking=True)
            features, logits = self.run(self.tensors, here)
        return features.float().cpu(), logits.float().cpu()


class CompiledEngine:
    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: tuple[int, int, int],
        device: str = "cpu",
        bfloat16: bool = False,
    ) -> None:
        """Compile the forward pass for every batch size.

        Args:
            model: The bare backbone.
            input_size: (C, H, W) of an image.
            device: `cpu` or `cuda`.
            bfloat16: As for `TorchEngine`.

        Raises:
            EngineError: The device isn't there, or the model can't be compiled here.
        """
        self._device = open_device(device)
        self._bfloat16 = bfloat16
        skeleton = editable_copy(on_device(model, self._device))
        tensors = (*skeleton.named_parameters(), *skeleton.named_buffers())
        self._tensors = {name: tensor.detach() for name, tensor in tensors}
        whole = WithFeatures(skeleton)

        def forward(tensors: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
            named = {f"model.{name}": tensor for name, tensor in tensors.items()}
            outputs: tuple[Tensor, Tensor] = functional_call(whole, named, (images,))
            return outputs

        self._run: _Compiled = torch.compile(forward)
        bare = self.build(EffectiveState())
        try:
            for batch in _WARM_BATCHES:
                bare(torch.zeros(batch, *input_size))
        except RuntimeError as error:  # Dynamo's and Inductor's, a missing compiler's too
            first = str(error).strip().partition("\n")[0]
            raise EngineError(
                f'the model can\'t be compiled here ({first}): set engine.name to "torch"'
            ) from error

    def build(self, state: EffectiveState) -> CompiledForward:
        """See `Engine.build`."""
        changed = changed_tensors(state, self._tensors)
        moved = {name: tensor.to(self._device) for name, tensor in changed.items()}
        return CompiledForward(self._run, self._tensors | moved, self._device, self._bfloat16)
