"""Changes seeds or rounding for all tests, to show that no test passes by luck.

Set in the environment of pytest:

    LETHE_TEST_SEED=3      changes every seed of torch
    LETHE_TEST_NOISE=1e-6  adds noise of this size to every image that enters a model
    LETHE_TEST_THREADS=2   makes torch use this many threads

Tests must pass with all of them, except those that compare an input or a sum to the last bit.
`ATEN_CPU_CAPABILITY=default` also works, without this module: torch then rounds as on a processor
without AVX.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from PIL import Image

# Larger than the differences between the seeds of one test, so that two runs share no seed.
_APART = 10_007


def disturb() -> None:
    """Do what the environment asks for. Call it before modules that use torch are imported."""
    seed = int(os.environ.get("LETHE_TEST_SEED", "0"))
    noise = float(os.environ.get("LETHE_TEST_NOISE", "0"))
    threads = int(os.environ.get("LETHE_TEST_THREADS", "0"))
    if seed:
        _shift_seeds(seed * _APART)
    if noise:
        _move_inputs(noise)
    if threads:
        _keep_threads(threads)


def _shift_seeds(by: int) -> None:
    import torch

    plain = torch.manual_seed

    class Shifted(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + by)

    torch.Generator = Shifted  # type: ignore[misc]
    torch.manual_seed = lambda seed: plain(seed + by)  # type: ignore[assignment]


def _move_inputs(by: float) -> None:
    import torch

    from forgetting.data import preprocess

    plain = preprocess.transform

    def moved(spec: preprocess.Preprocess) -> Callable[[Image.Image], torch.Tensor]:
        apply = plain(spec)
        generator = torch.Generator().manual_seed(0)
        noise = by * torch.randn(spec.input_size, generator=generator)  # (c, h, w)
        return lambda picture: apply(picture) + noise

    preprocess.transform = moved


def _keep_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
    torch.set_num_threads = lambda count: None
