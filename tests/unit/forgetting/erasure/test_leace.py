"""LEACE's theorem on real features, and what the fit refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.erasure.edit import LowRankEdit, composed
from forgetting.erasure.leace import fit_edit
from forgetting.erasure.statistics import FeatureStatistics, edited, merged, statistics_of
from forgetting.errors import DataError, TargetError, TrainingError
from forgetting.models.backbone import Backbone, features_and_logits
from forgetting.models.face_transformer import CosineHead

GONE = (3, 8)
Split = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def splits(backbone: Backbone, digit_images: ImageSet) -> dict[str, Split]:
    """The features of the digits that the backbone's head reads, and their labels."""
    found = {}
    for name in ("train", "test"):
        rows = indices(digit_images, name, classes=digit_images.classes)
        x, y = to_tensors(digit_images, rows, backbone.spec.preprocess)
        with torch.inference_mode():
            found[name] = features_and_logits(backbone.model, x)[0].clone(), y
    return found


@pytest.fixture(scope="module")
def head(backbone: Backbone) -> nn.Module:
    found: nn.Module = backbone.model.get_classifier()
    return found


def _both(split: Split, gone: tuple[int, ...] = GONE) -> tuple[FeatureStatistics, ...]:
    """Statistics of the (retained, forgotten) features."""
    e, y = split
    out = torch.isin(y, torch.tensor(gone))
    return statistics_of(e[~out], y[~out]), statistics_of(e[out], y[out])


def _edit(e: Tensor, erasure: LowRankEdit) -> Tensor:
    edit = composed([erasure])
    return e @ edit.matrix.T + edit.offset


def _accuracy(logits: Tensor, y: Tensor, classes: tuple[int, ...]) -> float:
    of = torch.isin(y, torch.tensor(classes))
    return float((logits[of].argmax(dim=1) == y[of]).float().mean())


def _probe_gain(e: Tensor, y: Tensor, label: int) -> float:
    """Nats by which a logistic probe "is it `label`?" is better than the best constant answer.

    Every class has the same weight, as in the fit.
    """
    weight = (1 / y.bincount()[y]).numpy()
    truth = (y == label).numpy()
    scaled = ((e - e.mean(dim=0)) / e.std(dim=0).clamp(min=1e-3)).double().numpy()
    probe = LogisticRegression(C=1e6, max_iter=2000, tol=1e-8)
    probe.fit(scaled, truth, sample_weight=weight)
    p = probe.predict_proba(scaled)[np.arange(len(truth)), truth.astype(int)]
    share = np.average(truth, weights=weight)
    constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return float(constant - np.average(-np.log(p), weights=weight))


def test_no_linear_probe_does_better_than_chance_on_the_fitted_features(
    splits: dict[str, Split], head: nn.Module
) -> None:
    e, y = splits["train"]
    after = _edit(e, fit_edit(*_both((e, y)), head=head))
    for label in GONE:
        assert _probe_gain(e, y, label) > 0.2  # of 0.33 nats
        assert _probe_gain(after, y, label) < 1e-3
    assert _probe_gain(after, y, 5) > 0.2


def test_the_head_names_no_forgotten_class_and_the_retained_stay(
    splits: dict[str, Split], head: nn.Module
) -> None:
    kept = tuple(c for c in range(10) if c not in GONE)
    erasure = fit_edit(*_both(splits["train"]), head=head)
    e, y = splits["test"]
    with torch.inference_mode():
        before, after = head(e), head(_edit(e, erasure))
    assert _accuracy(before, y, GONE) > 0.6
    assert _accuracy(after, y, GONE) <= 0.05
    assert _accuracy(after, y, kept) >= _accuracy(before, y, kept) - 0.1


def test_a_wider_margin_gives_forgotten_rows_less_of_the_answer(
    splits: dict[str, Split], head: nn.Module
) -> None:
    e, y = splits["test"]
    gone = torch.isin(y, torch.tensor(GONE))
    shares = []
    for margin in (0.0, 4.0, 8.0):
        erasure = fit_edit(*_both(splits["train"]), head=head, margin=margin)
        with torch.inference_mode():
            answers = head(_edit(e, erasure))[gone].softmax(dim=1)
        shares.append(float(answers[:, list(GONE)].sum(dim=1).mean()))
    assert shares[0] > shares[1] > shares[2]


def test_rank_is_the_number_of_forgotten_classes_and_ba_is_a_projection(
    splits: dict[str, Split], head: nn.Module
) -> None:
    for gone in ((1,), (1, 2, 4)):
        erasure = fit_edit(*_both(splits["train"], gone), head=head)
        assert erasure.rank == len(gone) == torch.linalg.matrix_rank(erasure.b @ erasure.a)
        p = erasure.b.double() @ erasure.a.double()
        torch.testing.assert_close(p @ p, p, atol=1e-5, rtol=0)
        assert erasure.stored == 2 * len(gone) * 32 + 2 * 32


def test_the_retained_mean_stays_and_the_forgotten_means_come_to_it(
    splits: dict[str, Split],
) -> None:
    retained, forget = _both(splits["train"])
    edit = composed([fit_edit(retained, forget, head=None)])
    after = edited(retained, edit).mean
    torch.testing.assert_close(after, retained.mean, atol=1e-4, rtol=0)
    for mean in edited(forget, edit).means:
        torch.testing.assert_close(mean, retained.mean, atol=1e-4, rtol=0)


def test_an_embedding_service_without_a_head_gets_no_shift(splits: dict[str, Split]) -> None:
    erasure = fit_edit(*_both(splits["train"]), head=None)
    assert not erasure.shift.any()


def test_the_shift_is_the_same_for_every_image_and_changes_no_difference(
    splits: dict[str, Split], head: nn.Module
) -> None:
    e, _ = splits["test"]
    with_head = fit_edit(*_both(splits["train"]), head=head)
    without = fit_edit(*_both(splits["train"]), head=None)
    assert torch.equal(with_head.a, without.a)
    moved = _edit(e, with_head) - _edit(e, without)
    torch.testing.assert_close(moved, with_head.shift.expand_as(moved), atol=1e-4, rtol=0)


def test_cached_statistics_of_all_classes_do_as_well_as_retained_images(
    splits: dict[str, Split], head: nn.Module
) -> None:
    _, forget = _both(splits["train"])
    cached = statistics_of(*splits["train"])  # the forgotten classes are still in it
    erasure = fit_edit(cached, forget, head=head)
    e, y = splits["train"]
    after = _edit(e, erasure)
    for label in GONE:
        assert _probe_gain(after, y, label) < 1e-3


def test_later_tasks_need_statistics_only_and_leave_earlier_classes_erased(
    splits: dict[str, Split], head: nn.Module
) -> None:
    e, y = splits["train"]
    cached = statistics_of(e, y)
    first = fit_edit(cached, _both((e, y), (3,))[1], head=head)
    # The second task: cached statistics through the first edit, images of the new class alone.
    follow = edited(cached, composed([first]))
    second_forget = _both((_edit(e, first), y), (8,))[1]
    second = fit_edit(follow, second_forget, head=head, earlier=[3])
    after = _edit(_edit(e, first), second)
    for label in (3, 8):
        assert _probe_gain(after, y, label) < 1e-3
    test, truth = splits["test"]
    with torch.inference_mode():
        logits = head(_edit(_edit(test, first), second))
    assert _accuracy(logits, truth, (3, 8)) <= 0.05


def test_few_forget_images_beside_many_retained_ones_are_enough(
    splits: dict[str, Split], head: nn.Module
) -> None:
    retained, _ = _both(splits["train"])
    e, y = splits["train"]
    few = torch.cat([(y == label).nonzero()[:3, 0] for label in GONE])
    erasure = fit_edit(retained, statistics_of(e[few], y[few]), head=head)
    test, truth = splits["test"]
    with torch.inference_mode():
        logits = head(_edit(test, erasure))
    assert _accuracy(logits, truth, GONE) <= 0.1


def test_a_cosine_head_is_answered_for_too(splits: dict[str, Split]) -> None:
    e, y = splits["train"]
    retained, forget = _both((e, y))
    cosine = CosineHead(32, 10)
    with torch.no_grad():  # nearest class mean by angle, from the mean of all
        cosine.weight.copy_(statistics_of(e, y).means - e.mean(dim=0))
    erasure = fit_edit(retained, forget, head=cosine)
    test, truth = splits["test"]
    with torch.inference_mode():
        assert _accuracy(cosine(test), truth, GONE) > 0.5
        assert _accuracy(cosine(_edit(test, erasure)), truth, GONE) <= 0.05


def test_the_same_statistics_give_the_same_numbers(
    splits: dict[str, Split], head: nn.Module
) -> None:
    one, other = (fit_edit(*_both(splits["train"]), head=head) for _ in range(2))
    for name in ("a", "b", "mean", "shift"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_as_many_classes_as_features_are_refused() -> None:
    y = torch.arange(40) % 10
    e = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    retained, forget = _both((e, y), (0, 1, 2, 3))
    with pytest.raises(TrainingError, match="4 classes can't be erased from a feature of width 4"):
        fit_edit(retained, forget, head=None)


def test_more_classes_than_the_rank_cap_are_refused() -> None:
    y = torch.arange(300) % 150
    e = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    retained, forget = _both((e, y), tuple(range(129)))
    with pytest.raises(TrainingError, match=r"129 classes .* in several tasks"):
        fit_edit(retained, forget, head=None)


def test_classes_without_a_difference_are_refused() -> None:
    e = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) // 20
    with pytest.raises(TrainingError, match="no difference to erase"):
        fit_edit(*_both((e.repeat(3, 1), y), (2,)), head=None)


def test_one_retained_class_or_none_is_refused(splits: dict[str, Split]) -> None:
    retained, forget = _both(splits["train"], tuple(range(9)))
    with pytest.raises(TrainingError, match="at least 2 retained classes, found 1"):
        fit_edit(retained, forget, head=None)
    with pytest.raises(DataError, match="no class would be left"):
        fit_edit(forget, forget, head=None)


def test_statistics_of_another_width_and_a_wrong_shrinkage_are_refused(
    splits: dict[str, Split],
) -> None:
    e, y = splits["train"]
    retained, forget = _both((e, y))
    with pytest.raises(TrainingError, match="width 16, forget features 32"):
        fit_edit(_both((e[:, :16], y))[0], forget, head=None)
    with pytest.raises(TrainingError, match=r"shrinkage 0\.0"):
        fit_edit(retained, forget, head=None, shrinkage=0.0)


def test_a_head_that_is_neither_linear_nor_cosine_is_refused(splits: dict[str, Split]) -> None:
    with pytest.raises(TargetError, match="Sequential"):
        fit_edit(*_both(splits["train"]), head=nn.Sequential(nn.Linear(32, 10)))
    with pytest.raises(TargetError, match="head reads 31 features"):
        fit_edit(*_both(splits["train"]), head=nn.Linear(31, 10))


def test_a_label_that_the_head_has_no_row_for_is_refused(splits: dict[str, Split]) -> None:
    retained, forget = _both(splits["train"])
    with pytest.raises(TrainingError, match=r"labels must lie in 0\.\.9"):
        fit_edit(retained, replace(forget, labels=(3, 12)), head=nn.Linear(32, 10))


def test_merging_the_forgotten_back_in_undoes_nothing_of_the_fit(splits: dict[str, Split]) -> None:
    retained, forget = _both(splits["train"])
    alone = fit_edit(retained, forget, head=None)
    both = fit_edit(merged(retained, forget), forget, head=None)
    torch.testing.assert_close(alone.mean, both.mean)
