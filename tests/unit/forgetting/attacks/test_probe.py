from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from forgetting.attacks.probe import ProbeConfig, fit, probe
from forgetting.errors import DataError
from forgetting.measure.features import Features, rows

GONE = torch.tensor([0, 1])


def gaussian(n: int, *, seed: int, between: float, classes: int = 10, dim: int = 24) -> Features:
    """Unit noise around centres at a distance of `between`; every seed has the same centres."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    y = torch.arange(classes).repeat_interleave(n)
    noise = torch.randn(len(y), dim, generator=torch.Generator().manual_seed(seed))
    e = between * centres[y] + noise + 5.0
    return Features(e, e[:, :classes], y)


def recalls(between: float, *, shots: tuple[int | None, ...]) -> list[float]:
    points = probe(
        gaussian(30, seed=0, between=between),
        gaussian(50, seed=1, between=between),
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=ProbeConfig(shots=shots),
    )
    return [point.recall_f for point in points]


def test_separable_features_are_read_completely_even_from_one_shot() -> None:
    assert recalls(8.0, shots=(1, 5, None)) == [1.0, 1.0, 1.0]


def test_features_without_the_class_are_read_by_chance() -> None:
    # 100 test images, chance 1/10: standard error 0.03, and the draws share the images.
    for recall in recalls(0.0, shots=(1, 5, None)):
        assert recall == pytest.approx(0.1, abs=0.1)


def test_more_shots_read_more() -> None:
    one, five, everything = recalls(0.6, shots=(1, 5, None))
    assert one < five < everything


def test_more_shots_than_images_are_all_of_them() -> None:
    twenty, thirty, hundred, everything = recalls(0.6, shots=(20, 30, 100, None))
    assert thirty == hundred == everything
    assert twenty != thirty


def test_fit_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    data = gaussian(10, seed=0, between=0.6, classes=4)
    head = fit(data.embedding, data.y, penalty=1.0, steps=200)
    z = (data.embedding - head.mean) / head.deviation
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(z.numpy(), data.y.numpy())
    ours = head(data.embedding).softmax(dim=1)
    expected = torch.from_numpy(theirs.predict_proba(z.numpy())).float()
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)


def test_label_without_images_gets_no_probability() -> None:
    data = gaussian(10, seed=0, between=2.0, classes=4)
    head = fit(*(t[data.y != 1] for t in (data.embedding, data.y)), penalty=1.0, steps=50)
    logits = head(data.embedding)
    assert torch.equal(F.softmax(logits, dim=1)[:, 1], torch.zeros(40))
    assert logits.shape == (40, 4)


def test_probe_without_forget_images_is_refused() -> None:
    data = gaussian(3, seed=0, between=1.0)
    with pytest.raises(DataError, match="found none"):
        probe(rows(data, data.y > 1), data, forgotten=GONE, generator=torch.Generator())
