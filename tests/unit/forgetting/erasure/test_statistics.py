from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.samples import Samples
from forgetting.erasure.edit import FeatureEdit
from forgetting.erasure.statistics import (
    FeatureStatistics,
    edited,
    feature_statistics,
    merged,
    statistics_of,
    without,
)
from forgetting.errors import DataError
from forgetting.models.backbone import Backbone, features_and_logits


def _features(
    n: int = 60, *, classes: int = 4, width: int = 5, seed: int = 0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, width, generator=generator) + y[:, None] * 0.3, y


def _assert_same(one: FeatureStatistics, other: FeatureStatistics) -> None:
    assert one.labels == other.labels
    assert one.images == other.images
    for name in ("counts", "means", "within"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_statistics_are_means_and_the_covariance_about_them() -> None:
    e, y = _features()
    found = statistics_of(e, y)
    assert found.labels == (0, 1, 2, 3)
    centred = torch.cat([e[y == c] - e[y == c].mean(dim=0) for c in range(4)]).double()
    torch.testing.assert_close(found.within, centred.T @ centred / 60, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.means[2], e[y == 2].double().mean(dim=0))
    assert found.counts.tolist() == y.bincount().tolist()


def test_every_class_has_the_same_say_in_the_mean() -> None:
    e = torch.tensor([[0.0, 0.0]] * 9 + [[1.0, 2.0]])
    found = statistics_of(e, torch.tensor([0] * 9 + [1]))
    assert found.mean.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("cut", [1, 17, 59])
def test_merged_parts_are_the_statistics_of_the_whole(cut: int) -> None:
    e, y = _features()
    parts = statistics_of(e[:cut], y[:cut]), statistics_of(e[cut:], y[cut:])
    _assert_same(merged(*parts), statistics_of(e, y))


def test_statistics_follow_an_edit_without_any_image() -> None:
    e, y = _features()
    edit = FeatureEdit(torch.randn(5, 5), torch.randn(5))
    _assert_same(
        edited(statistics_of(e, y), edit),
        statistics_of(e.double() @ edit.matrix.double().T + edit.offset.double(), y),
    )


def test_a_class_can_be_taken_out_and_its_mean_is_gone() -> None:
    e, y = _features()
    whole = statistics_of(e, y)
    left = without(whole, [1, 7])
    assert left.labels == (0, 2, 3)
    assert left.counts.tolist() == [whole.counts[i].item() for i in (0, 2, 3)]
    assert torch.equal(left.means, whole.means[[0, 2, 3]])
    with pytest.raises(DataError, match="no class would be left"):
        without(whole, range(4))


def test_statistics_of_a_model_are_those_of_what_its_head_reads(
    backbone: Backbone, digit_images: ImageSet
) -> None:
    rows = indices(digit_images, "val", classes=digit_images.classes)
    samples = Samples(*to_tensors(digit_images, rows, backbone.spec.preprocess))
    with torch.inference_mode():
        embedding, _ = features_and_logits(backbone.model, samples.x)
    _assert_same(
        feature_statistics(backbone.model, samples, batch=50), statistics_of(embedding, samples.y)
    )


def test_what_has_no_statistics_is_refused() -> None:
    e, y = _features()
    with pytest.raises(DataError, match="no images"):
        statistics_of(e[:0], y[:0])
    with pytest.raises(DataError, match=r"expected features \(n, d\)"):
        statistics_of(e, y[:-1])
    e[3, 2] = float("nan")
    with pytest.raises(DataError, match="1 of 60 images are not finite"):
        statistics_of(e, y)
    with pytest.raises(DataError, match="width 5 and 4"):
        merged(statistics_of(e[:3], y[:3]), statistics_of(e[:3, :4], y[:3]))
