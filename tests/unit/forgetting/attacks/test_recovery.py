from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forgetting.attacks.recovery import RecoveryConfig, recovery
from forgetting.errors import DataError
from forgetting.measure.features import Features, rows
from forgetting.models.face_transformer import CosineHead

CLASSES, DIM = 6, 16
GONE = torch.tensor([0, 1])


def clusters(n: int, *, seed: int, spread: float = 0.3, same: Tensor | None = None) -> Features:
    """n samples of each class around its own axis; classes in `same` share one axis."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat_interleave(n)
    centres = 3 * torch.eye(CLASSES, DIM)
    if same is not None:
        centres[same] = 0.0
    e = centres[y] + spread * torch.randn(len(y), DIM, generator=generator)
    return Features(e, e[:, :CLASSES], y)


def blank(head: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        head.weight.copy_(torch.eye(CLASSES, DIM))
        head.weight[GONE] = head.weight[2:].mean(dim=0)
        if not isinstance(head, CosineHead):
            head.bias.zero_()
    return head


def run(head: nn.Linear, train: Features, test: Features, *, share: float = 0.5) -> list[float]:
    curve = recovery(
        head,
        train=train,
        test=test,
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=RecoveryConfig(share=share, rate=1e-2),
    )
    return [point.acc_f for point in curve]


@pytest.mark.parametrize("head", [nn.Linear(DIM, CLASSES), CosineHead(DIM, CLASSES, scale=16)])
def test_separable_features_are_recovered_from_a_blank_row(head: nn.Linear) -> None:
    curve = run(blank(head), clusters(20, seed=0), clusters(20, seed=1))
    assert curve[0] <= 0.1
    assert curve[-1] == 1.0


def test_features_without_the_classes_are_not_recovered() -> None:
    train, test = (clusters(20, seed=s, same=GONE) for s in (0, 1))
    # The two classes look the same, so the better of two guesses is right half the time.
    assert run(blank(nn.Linear(DIM, CLASSES)), train, test)[-1] == pytest.approx(0.5, abs=0.2)


def test_head_is_left_as_it_was_and_the_curve_begins_with_it() -> None:
    head = nn.Linear(DIM, CLASSES)
    before = head.weight.clone()
    test = clusters(20, seed=1)
    curve = recovery(
        head,
        train=clusters(20, seed=0),
        test=test,
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=RecoveryConfig(epochs=3, looks=(0, 2)),
    )
    assert torch.equal(head.weight, before)
    assert [point.epoch for point in curve] == [0, 2, 3]
    kept = test.y >= 2
    right = head(test.embedding).argmax(dim=1) == test.y
    assert curve[0].acc_f == pytest.approx(float(right[~kept].float().mean()))
    assert curve[0].acc_r == pytest.approx(float(right[kept].float().mean()))


def test_margin_accuracy_is_given_for_a_cosine_head_only_and_is_the_stricter() -> None:
    data = {"train": clusters(8, seed=0, spread=0.9), "test": clusters(30, seed=1, spread=0.9)}
    config = RecoveryConfig(share=0.5, epochs=5, looks=(5,))
    points = [
        recovery(
            head,
            train=data["train"],
            test=data["test"],
            forgotten=GONE,
            generator=torch.Generator().manual_seed(0),
            config=config,
        )[-1]
        for head in (blank(nn.Linear(DIM, CLASSES)), blank(CosineHead(DIM, CLASSES, margin=0.5)))
    ]
    assert points[0].margin_f is None
    assert points[0].margin_r is None
    assert points[1].margin_r is not None
    assert points[1].margin_r < points[1].acc_r


def test_train_images_of_both_kinds_are_needed() -> None:
    train = clusters(4, seed=0)
    for part in (rows(train, train.y < 2), rows(train, train.y >= 2)):
        with pytest.raises(DataError, match="of forgotten and of retained"):
            run(nn.Linear(DIM, CLASSES), part, train)
