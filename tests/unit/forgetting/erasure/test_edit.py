from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from forgetting.erasure.edit import (
    EditLayer,
    FeatureEdit,
    LowRankEdit,
    check_room,
    composed,
    edit_point,
    folded,
    install_edit,
    installed_edit,
    without_edit,
)
from forgetting.errors import TargetError, TrainingError
from forgetting.models.backbone import Backbone, features_and_logits
from forgetting.models.face_transformer import CosineHead

Make = Callable[..., Backbone]


def _erasure(width: int = 12, *, rank: int = 2, seed: int = 0) -> LowRankEdit:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator)
    b = torch.linalg.pinv(a) + 0.0
    mean, shift = torch.randn(2, width, generator=generator)
    return LowRankEdit(a, b, mean, shift)


def _by_hand(e: Tensor, erasure: LowRankEdit) -> Tensor:
    """The edit e - B A (e - mean) + shift, computed one image at a time."""
    rows = [x - erasure.b @ (erasure.a @ (x - erasure.mean)) + erasure.shift for x in e]
    return torch.stack(rows)


def _apply(e: Tensor, edit: FeatureEdit) -> Tensor:
    return e @ edit.matrix.T + edit.offset


def test_a_stack_of_erasures_is_one_affine_map() -> None:
    e, first, second = torch.randn(7, 12), _erasure(seed=1), _erasure(seed=2, rank=3)
    edit = composed([first, second])
    torch.testing.assert_close(_apply(e, edit), _by_hand(_by_hand(e, first), second))
    torch.testing.assert_close(
        _apply(e, composed([second], below=composed([first]))), _apply(e, edit)
    )


def test_the_order_of_the_erasures_matters() -> None:
    first, second = _erasure(seed=1), _erasure(seed=2)
    one, other = composed([first, second]), composed([second, first])
    assert not torch.allclose(one.matrix, other.matrix, atol=1e-3)


def test_embedding_and_logits_both_read_the_edited_feature(untrained: Make) -> None:
    backbone, erasure, x = untrained(), _erasure(), torch.randn(5, 1, 8, 8)
    model = copy.deepcopy(backbone.model)
    install_edit(model, composed([erasure]))
    with torch.inference_mode():
        before, _ = features_and_logits(backbone.model, x)
        embedding, logits = features_and_logits(model, x)
        torch.testing.assert_close(embedding, _by_hand(before, erasure))
        torch.testing.assert_close(logits, backbone.model.get_classifier()(embedding))
        assert torch.equal(logits, model(x))


def test_edit_folded_into_a_linear_head_gives_the_same_logits(untrained: Make) -> None:
    backbone, x = untrained(), torch.randn(20, 1, 8, 8)
    edit = composed([_erasure(seed=1), _erasure(seed=2)])
    layered, merged = copy.deepcopy(backbone.model), copy.deepcopy(backbone.model)
    install_edit(layered, edit)
    head = merged.get_classifier()
    with torch.no_grad():
        for own, new in zip((head.weight, head.bias), folded(head, edit), strict=True):
            own.copy_(new)
        torch.testing.assert_close(merged(x), layered(x), atol=1e-5, rtol=0)


def test_fold_gives_a_head_without_bias_the_bias_that_it_needs() -> None:
    head, e, edit = nn.Linear(12, 4, bias=False), torch.randn(6, 12), composed([_erasure()])
    weight, bias = folded(head, edit)
    torch.testing.assert_close(e @ weight.T + bias, head(_apply(e, edit)), atol=1e-5, rtol=0)


def test_a_cosine_head_can_not_take_the_edit_into_itself() -> None:
    with pytest.raises(TargetError, match="CosineHead"):
        folded(CosineHead(12, 4), composed([_erasure()]))


def test_a_new_edit_takes_the_place_of_the_old_one_and_dropout_stays(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    assert installed_edit(model) is None
    model.head_drop = nn.Dropout(0.5)
    first, second = composed([_erasure(seed=1)]), composed([_erasure(seed=2)])
    install_edit(model, first)
    install_edit(model, second)
    found = installed_edit(model)
    assert found is not None
    assert torch.equal(found.matrix, second.matrix)
    e = torch.ones(4, 12)
    assert torch.equal(model.head_drop(e), model.head_drop(e))
    model.train()
    assert (model.head_drop(e) == 0).any()


def test_weights_saved_with_an_edit_can_not_be_loaded_without_it(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    install_edit(model, composed([_erasure()]))
    with pytest.raises(RuntimeError, match=r"head_drop\.matrix"):
        untrained().model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("drop", [None, nn.Linear(12, 12)])
def test_a_model_without_a_place_for_the_edit_is_refused(
    untrained: Make, drop: nn.Module | None
) -> None:
    model = copy.deepcopy(untrained().model)
    model.head_drop = drop
    with pytest.raises(TargetError, match=r"expected a dropout named `head_drop`"):
        edit_point(model)


def test_an_edit_of_another_width_is_refused(untrained: Make) -> None:
    model = copy.deepcopy(untrained().model)
    with pytest.raises(TargetError, match="edit of 12 features"):
        install_edit(model, composed([_erasure(8)]))
    assert not isinstance(model.head_drop, EditLayer)


def test_too_many_classes_for_the_feature_are_refused_with_the_number_that_fits(
    untrained: Callable[..., Backbone],
) -> None:
    model = untrained().model  # 12 wide: 8 dimensions may go
    check_room(model, classes=8)
    with pytest.raises(TrainingError, match=r"9 classes .* at most 8 more may go"):
        check_room(model, classes=9)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 5, generator=generator))[0]
    edit = LowRankEdit(basis.T.contiguous(), basis, torch.zeros(12), torch.zeros(12))
    install_edit(model, composed([edit]))
    check_room(model, classes=3)
    with pytest.raises(TrainingError, match=r"earlier edits took 5; at most 3 more may go"):
        check_room(model, classes=4)


def test_model_without_its_edit_shares_all_else(untrained: Callable[..., Backbone]) -> None:
    model = untrained().model
    assert without_edit(model) is model
    before = model.head_drop
    edit = FeatureEdit(2 * torch.eye(12), torch.zeros(12))
    install_edit(model, edit)
    stripped = without_edit(model)
    assert stripped.head_drop is before
    assert installed_edit(model) is not None
    assert stripped.head is model.head
    assert [id(p) for p in stripped.parameters()] == [id(p) for p in model.parameters()]
