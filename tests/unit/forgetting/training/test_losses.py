from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from forgetting.training.losses import (
    chance_bound,
    dispersion_loss,
    feature_loss,
    forget_bound,
    forget_loss,
    group_norm,
    match_loss,
    own_distribution,
    prox_threshold,
    relearner_loss,
    retain_loss,
    shrink,
    spread,
)


def test_bound_is_the_loss_at_chance_plus_the_margin() -> None:
    uniform = F.cross_entropy(torch.zeros(1, 7), torch.tensor([3]))
    assert chance_bound(7, margin=0.5) == pytest.approx(float(uniform) + 0.5)


def test_forget_loss_is_the_mean_of_each_samples_own_gap() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [-9.0, 0.0, 0.0]])
    y = torch.tensor([0, 0])
    bound = chance_bound(3, margin=1.0)
    gap = bound - float(F.cross_entropy(logits[:1], y[:1]))
    assert float(forget_loss(logits, y, bound=bound)) == pytest.approx(gap / 2)


def test_sample_beyond_the_bound_gets_no_gradient() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [-9.0, 0.0, 0.0]], requires_grad=True)
    forget_loss(logits, torch.tensor([0, 0]), bound=chance_bound(3, margin=1.0)).backward()
    assert logits.grad is not None
    assert bool(logits.grad[0].any())
    assert not bool(logits.grad[1].any())


def test_sample_beyond_chance_is_not_the_arg_max_at_any_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 64.0):
        logits = torch.randn(500, 6, generator=generator) * scale
        y = torch.randint(6, (500,), generator=generator)
        beyond = F.cross_entropy(logits, y, reduction="none") > chance_bound(6, margin=1e-6)
        assert bool(beyond.any())
        assert not bool((logits.argmax(dim=1) == y)[beyond].any())


def test_own_distribution_is_the_softmax_without_the_forgotten() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    target = own_distribution(logits, forgotten=torch.tensor([3]))
    assert torch.allclose(target[0, :3], torch.softmax(logits[0, :3], dim=0))
    assert float(target[0, 3]) == 0.0


def test_retain_loss_with_a_one_hot_target_is_the_cross_entropy() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3, 0])
    assert torch.allclose(retain_loss(logits, F.one_hot(y, 4)), F.cross_entropy(logits, y))


def test_retain_loss_is_least_at_the_target() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    target = logits.softmax(dim=1)
    least = float(retain_loss(logits, target))
    assert least == pytest.approx(float(-(target * target.log()).sum()), abs=1e-6)
    assert float(retain_loss(logits + torch.tensor([[0.5, 0.0, 0.0]]), target)) > least


def test_shrinking_solves_the_proximal_problem() -> None:
    """The result minimises 1/2 |g - z|^2 + t |g|: no small step in any direction is better."""
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(4, 3, generator=generator), torch.randn(2, generator=generator)]
    threshold = 0.7
    after = [part.clone() for part in before]
    assert shrink(after, threshold=threshold)

    def objective(parts: list[torch.Tensor]) -> float:
        gap = group_norm([g - z for g, z in zip(parts, before, strict=True)])
        return 0.5 * gap**2 + threshold * group_norm(parts)

    for _ in range(50):
        moved = [g + 0.01 * torch.randn(g.shape, generator=generator) for g in after]
        assert objective(moved) > objective(after)


def test_weak_group_becomes_exactly_zero() -> None:
    parts = [torch.full((3, 2), 0.1), torch.full((2,), -0.1)]
    assert not shrink(parts, threshold=group_norm(parts) * 1.001)
    assert all(bool((part == 0).all()) for part in parts)
    assert not shrink(parts, threshold=0.0)


def test_threshold_is_a_share_of_an_adam_step() -> None:
    parameter = torch.nn.Parameter(torch.zeros(30, 8))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    parameter.grad = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = group_norm([parameter])
    threshold = prox_threshold(strength=0.25, rate=0.01, size=parameter.numel())
    assert threshold == pytest.approx(step / 4, rel=1e-3)


def test_group_norm_is_over_all_parts() -> None:
    assert group_norm([torch.full((2,), 2.0), torch.full((2, 1), 2.0)]) == math.sqrt(16)


def test_feature_loss_is_the_move_in_units_of_the_spread() -> None:
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) + 7.0
    assert spread(target) == pytest.approx(1.0)  # about their mean
    assert float(feature_loss(target, target, spread=1.0)) == 0.0
    moved = target + torch.tensor([0.0, 0.5])
    assert float(feature_loss(moved, target, spread=spread(target))) == pytest.approx(0.25)
    # The same at any scale of the features.
    near = feature_loss(10 * moved, 10 * target, spread=spread(10 * target))
    assert float(near) == pytest.approx(0.25)


def test_match_loss_holds_the_confidence_among_kept_classes_only() -> None:
    target = torch.tensor([[4.0, 1.0, 0.0, 9.0]])
    kept = torch.tensor([0, 1, 2])
    assert float(match_loss(target, target, kept=kept)) == pytest.approx(0.0, abs=1e-6)
    without_3 = target.index_fill(1, torch.tensor([3]), -9.0)
    assert float(match_loss(without_3, target, kept=kept)) == pytest.approx(0.0, abs=1e-6)
    same_answer_less_sure = target / 2
    assert float(match_loss(same_answer_less_sure, target, kept=kept)) > 0.05


def test_bound_follows_the_heads_own_lead() -> None:
    y = torch.tensor([0, 1])
    logits = torch.tensor([[5.0, 1.0, 0.0], [0.0, 6.0, 2.0]])  # leads of 4 nats
    chance = chance_bound(3, margin=0.0)
    assert forget_bound(logits, y, margin=2.0, gap=0.75) == pytest.approx(chance + 3.0)
    cosine = 8 * logits  # the same directions at another scale
    assert forget_bound(cosine, y, margin=2.0, gap=0.75) == pytest.approx(chance + 24.0)
    assert forget_bound(-logits, y, margin=2.0, gap=0.75) == pytest.approx(chance + 2.0)


def test_dispersion_is_the_mean_cosine_of_one_classs_pairs_seen_from_the_centre() -> None:
    centre = torch.tensor([5.0, 5.0])
    apart = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [0.0, -1.0]])
    y = torch.tensor([0, 0, 0, 1])  # class 1 has one image, so no pair
    cosines = [math.cos(math.pi / 4), 0.0, math.cos(math.pi / 4)]
    expected = sum(cosines) / 3
    assert float(dispersion_loss(centre + apart, y, centre=centre)) == pytest.approx(expected)
    opposite = centre + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(dispersion_loss(opposite, y[:2], centre=centre)) == 0.0


def test_dispersion_of_single_images_is_zero_and_has_a_gradient_all_the_same() -> None:
    embedding = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = dispersion_loss(embedding, torch.tensor([0, 1, 2]), centre=torch.zeros(4))
    loss.backward()
    assert float(loss) == 0.0
    assert embedding.grad is not None
    assert not bool(embedding.grad.any())


def test_relearner_is_at_chance_on_noise_and_far_from_it_on_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(12)
    noise = torch.randn(48, 32, generator=generator)
    centres = 4 * torch.randn(4, 32, generator=generator)
    told = float(relearner_loss(noise + centres[y], y))
    assert told > 0.9 * math.log(4)
    assert float(relearner_loss(noise, y)) < 0.1 * told


def test_descending_the_relearner_loss_hides_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(10)
    hidden = torch.randn(30, 16, generator=generator)
    hidden += 2 * torch.randn(3, 16, generator=generator)[y]
    edit = torch.eye(16).requires_grad_()
    optimizer = torch.optim.Adam([edit], lr=0.02)
    first = float(relearner_loss(hidden @ edit, y).detach())
    for _ in range(60):
        optimizer.zero_grad()
        relearner_loss(hidden @ edit, y).backward()
        optimizer.step()
    assert float(relearner_loss(hidden @ edit, y).detach()) < 0.2 * first


def test_relearner_needs_two_classes_with_two_images() -> None:
    embedding = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert float(relearner_loss(embedding, torch.tensor([0, 0, 0, 1, 2]))) == 0.0


def test_relearner_tells_a_single_class_from_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.zeros(12, dtype=torch.int64)
    noise, others = (torch.randn(n, 32, generator=generator) for n in (12, 60))
    centre = 4 * torch.randn(32, generator=generator)
    assert float(relearner_loss(noise + centre, y)) == 0.0  # nothing to tell it from
    assert float(relearner_loss(noise + centre, y, others=others)) > 0.8 * math.log(2)
    assert float(relearner_loss(noise, y, others=others)) < 0.1
    rest = others.clone().requires_grad_(True)
    told = (noise + centre).requires_grad_(True)
    relearner_loss(told, y, others=rest).backward()
    assert rest.grad is None  # retained images are left where they are
    assert told.grad is not None
    assert bool(told.grad.any())
