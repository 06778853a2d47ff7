from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from forgetting.data.samples import Samples
from forgetting.errors import DataError
from forgetting.measure.features import Features, draw_per_class, extract, halves, split
from forgetting.models.backbone import Backbone


def test_features_are_what_the_model_gives_whatever_the_batch(
    untrained: Callable[..., Backbone],
) -> None:
    model = untrained().model
    samples = Samples(torch.randn(7, 1, 8, 8), torch.arange(7) % 4)
    whole, parts = extract(model, samples), extract(model, samples, batch=3)
    assert whole.embedding.shape == (7, 12)
    torch.testing.assert_close(whole.logits, model(samples.x))
    torch.testing.assert_close(parts.embedding, whole.embedding)


def test_no_images_and_broken_weights_are_refused(untrained: Callable[..., Backbone]) -> None:
    model = untrained().model
    with pytest.raises(DataError, match="at least one image"):
        extract(model, Samples(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64)))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="isn't finite"):
        extract(model, Samples(torch.randn(2, 1, 8, 8), torch.tensor([0, 1])))


def test_split_puts_every_row_on_one_side(untrained: Callable[..., Backbone]) -> None:
    y = torch.tensor([0, 3, 1, 3, 2])
    features = extract(untrained().model, Samples(torch.randn(5, 1, 8, 8), y))
    gone, kept = split(features, forgotten=torch.tensor([3, 0]))
    assert gone.y.tolist() == [0, 3, 3]
    assert kept.y.tolist() == [1, 2]


def test_draw_takes_each_class_in_its_share_and_at_least_once() -> None:
    y = torch.tensor([0] * 20 + [5] * 3 + [7] * 11)
    generator = torch.Generator().manual_seed(0)
    tenth = draw_per_class(y, share=0.1, generator=generator)
    assert y[tenth].bincount(minlength=8).tolist() == [2, 0, 0, 0, 0, 1, 0, 1]
    five = draw_per_class(y, count=5, generator=generator)
    assert y[five].bincount(minlength=8).tolist() == [5, 0, 0, 0, 0, 3, 0, 5]
    assert len(set(five.tolist())) == 13


def test_draw_wants_a_count_or_a_share() -> None:
    generator = torch.Generator()
    with pytest.raises(DataError, match="either a count or a share"):
        draw_per_class(torch.tensor([0, 1]), generator=generator)


def test_halves_share_each_class_evenly_and_give_a_lone_image_to_both() -> None:
    y = torch.tensor([0, 1, 0, 0, 2, 1, 0])
    whole = Features(torch.arange(7.0)[:, None], torch.zeros(7, 3), y)
    first, second = halves(whole)
    assert first.y.bincount().tolist() == [2, 1, 1]
    assert second.y.bincount().tolist() == [2, 1, 1]
    shared = set(first.embedding.flatten().tolist()) & set(second.embedding.flatten().tolist())
    assert shared == {4.0}  # the only image of class 2
