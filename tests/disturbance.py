"""Another seed or other rounding for every test that trains, so that none is decided by luck.

Set in the environment of pytest:

    LETHE_TEST_SEED=3      every seed of torch is another one
    LETHE_TEST_NOISE=1e-6  every image that enters a model is moved by so much
    LETHE_TEST_THREADS=2   torch adds up in so many threads

Tests must pass under all of them, but for those that compare an input or a sum to the last bit.
`ATEN_CPU_CAPABILITY=default` needs no help: torch then rounds as on a processor without AVX.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from PIL import Image

# Far apart, so that the seeds that one test tells apart don't meet those of another run.
_APART = 10_007


_SEED = int(os.environ.get("LETHE_TEST_SEED", "0"))
_NOISE = float(os.environ.get("LETHE_TEST_NOISE", "0"))
_THREADS = int(os.environ.get("LETHE_TEST_THREADS", "0"))

DISTURBED = bool(_SEED or _NOISE or _THREADS)


def disturb() -> None:
    """Do what the environment asks for; before any module that draws or transforms is imported."""
    if _SEED:
        _shift_seeds(_SEED * _APART)
    if _NOISE:
        _move_inputs(_NOISE)
    if _THREADS:
        _keep_threads(_THREADS)


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
