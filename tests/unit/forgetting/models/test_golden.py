"""The golden image is the same everywhere, and its figures show every change of the logits."""

from __future__ import annotations

import math

import pytest
import torch

from forgetting.models.golden import TOLERANCE, golden_error, golden_figures, golden_image

IMAGE = [0.890625, 1.203125, -1.75, 0.46875, 0.40625]
FIGURES = (5.37587, -2.21359, -11.06797, 4.74342)


def test_the_image_never_changes() -> None:
    """Old reports hold its figures, so these numbers are part of the format."""
    image = golden_image((3, 4, 5))
    assert image.shape == (1, 3, 4, 5)
    assert image.dtype == torch.float32
    assert image.flatten()[:5].tolist() == IMAGE
    assert -2 <= image.min() < -1
    assert 1 < image.max() < 2


def test_the_figures_never_change() -> None:
    assert golden_figures(torch.arange(10.0)[None])[:4] == FIGURES


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_change_of_any_one_logit_is_seen(classes: int) -> None:
    logits = torch.randn(1, classes, generator=torch.Generator().manual_seed(0))
    before = golden_figures(logits)
    step = 2 * TOLERANCE * math.sqrt(classes) * 4
    for k in range(0, classes, max(1, classes // 20)):
        changed = logits.clone()
        changed[0, k] += step
        assert golden_error(golden_figures(changed), before) > TOLERANCE


def test_logits_that_agree_to_1e_4_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 100, generator=generator)
    noisy = logits + (torch.rand(1, 100, generator=generator) - 0.5) * 2e-4
    assert golden_error(golden_figures(noisy), golden_figures(logits)) < TOLERANCE


def test_what_is_no_number_or_of_another_length_is_infinitely_far() -> None:
    assert golden_error([1.0, math.nan], [1.0, 1.0]) == math.inf
    assert golden_error([1.0, 1.0], [math.inf, 1.0]) == math.inf
    assert golden_error([1.0], [1.0, 1.0]) == math.inf


def test_large_figures_are_compared_in_their_own_scale() -> None:
    assert golden_error([1000.5, 1.0], [1000.0, 1.0]) == pytest.approx(0.0005)
    assert golden_error([0.1, 0.2], [0.1, 0.3]) == pytest.approx(0.1)
