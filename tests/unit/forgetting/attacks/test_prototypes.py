from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgetting.attacks.prototypes import (
    PrototypeConfig,
    class_means,
    nearest_mean,
    relearn_by_prototype,
)
from forgetting.errors import DataError
from forgetting.measure.features import Features, rows
from forgetting.models.face_transformer import CosineHead

CLASSES, DIM = 8, 16
GONE = torch.tensor([0, 1])


def clusters(n: int, *, seed: int, common: float = 0.0, spread: float = 0.2) -> Features:
    """Images around the axes, all moved by `common` along the last one."""
    y = torch.arange(CLASSES).repeat_interleave(n)
    noise = torch.randn(len(y), DIM, generator=torch.Generator().manual_seed(seed))
    e = torch.eye(CLASSES, DIM)[y] + spread * noise
    e[:, -1] += common
    return Features(e, e[:, :CLASSES], y)


def own_head(head: nn.Linear) -> nn.Linear:
    """A head that knows the retained classes; the forgotten rows are masked."""
    with torch.no_grad():
        head.weight.copy_(4 * torch.eye(CLASSES, DIM))
        head.weight[GONE] = 0.0
        if isinstance(head, CosineHead):
            head.weight[GONE] = -torch.eye(CLASSES, DIM)[GONE]
        else:
            head.bias.zero_()
            head.bias[GONE] = -1e4
    return head


def attacked(head: nn.Linear, *, common: float = 0.0, alpha: float = 1.0) -> tuple[float, float]:
    (point,) = relearn_by_prototype(
        head,
        train=clusters(10, seed=0, common=common),
        test=clusters(30, seed=1, common=common),
        forgotten=GONE,
        generator=torch.Generator().manual_seed(0),
        config=PrototypeConfig(alphas=(alpha,)),
    )
    return point.recall_f, point.acc_r


@pytest.mark.parametrize("head", [nn.Linear(DIM, CLASSES), CosineHead(DIM, CLASSES)])
def test_five_shots_write_a_separable_class_back(head: nn.Linear) -> None:
    recall, accuracy = attacked(own_head(head))
    assert recall > 0.97
    assert accuracy > 0.97


def test_common_part_of_the_features_doesnt_let_the_new_row_win_everywhere() -> None:
    recall, accuracy = attacked(own_head(nn.Linear(DIM, CLASSES)), common=20.0)
    assert recall > 0.97
    assert accuracy > 0.97


def test_old_row_has_no_influence_at_alpha_one_and_some_at_a_half() -> None:
    first, second = own_head(nn.Linear(DIM, CLASSES)), own_head(nn.Linear(DIM, CLASSES))
    with torch.no_grad():
        second.weight[GONE] = -20 * torch.eye(CLASSES, DIM)[GONE]
    assert attacked(first) == attacked(second)
    assert attacked(second, alpha=0.5)[0] < 0.1 < attacked(first, alpha=0.5)[0]


def test_written_cosine_row_is_the_equation_by_hand() -> None:
    head = own_head(CosineHead(DIM, CLASSES, scale=1.0))
    train = clusters(5, seed=0)
    test = clusters(40, seed=1, spread=0.6)
    (point,) = relearn_by_prototype(
        head,
        train=train,
        test=test,
        forgotten=GONE,
        generator=torch.Generator(),
        config=PrototypeConfig(alphas=(0.5,), draws=1),
    )
    weight = F.normalize(head.weight.detach(), dim=1)
    for c in (0, 1):
        mean = F.normalize(train.embedding[train.y == c], dim=1).mean(dim=0)
        weight[c] = 0.5 * mean / mean.norm() + 0.5 * weight[c]
    answers = (F.normalize(test.embedding, dim=1) @ F.normalize(weight, dim=1).T).argmax(dim=1)
    hits = (answers == test.y)[test.y < 2].float().mean()
    assert point.recall_f == pytest.approx(float(hits))
    assert 0 < point.recall_f < 1


def test_nearest_mean_finds_separable_classes_and_nothing_in_noise() -> None:
    train, test = clusters(10, seed=0, common=20.0), clusters(30, seed=1, common=20.0)
    generator = torch.Generator().manual_seed(0)
    point = nearest_mean(train, test, forgotten=GONE, generator=generator)
    assert point.recall_f > 0.95
    assert point.acc_r > 0.95
    noise = [Features(torch.randn_like(f.embedding), f.logits, f.y) for f in (train, test)]
    recall = nearest_mean(*noise, forgotten=GONE, generator=generator, shots=10).recall_f
    assert recall == pytest.approx(1 / CLASSES, abs=0.13)  # 60 test images: 3 standard errors


def test_class_means_are_those_of_the_labels_that_occur() -> None:
    labels, means = class_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([5, 5, 2]))
    assert labels.tolist() == [2, 5]
    assert means.flatten().tolist() == [7.0, 2.0]


def test_images_of_both_kinds_are_needed() -> None:
    train = clusters(3, seed=0)
    with pytest.raises(DataError, match="found 6 and 0"):
        relearn_by_prototype(
            own_head(nn.Linear(DIM, CLASSES)),
            train=rows(train, train.y < 2),
            test=train,
            forgotten=GONE,
            generator=torch.Generator(),
        )
