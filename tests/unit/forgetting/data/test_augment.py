from __future__ import annotations

import torch

from forgetting.data.augment import Augmentation, augmented

NOTHING = Augmentation(rotation=0, scale=0, shift=0, contrast=0, brightness=0)


def _images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 2, 12, 8, generator=torch.Generator().manual_seed(0))


def test_no_range_changes_nothing() -> None:
    x = _images()
    same = augmented(x, NOTHING, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(same, x, atol=1e-5)


def test_each_sample_is_changed_differently_and_repeatably() -> None:
    x = _images(1).expand(5, -1, -1, -1)
    first = augmented(x, Augmentation(), generator=torch.Generator().manual_seed(1))
    again = augmented(x, Augmentation(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    x = _images(40)
    only = Augmentation(rotation=0, scale=0, shift=0, contrast=0, brightness=0, flip=True)
    out = augmented(x, only, generator=torch.Generator().manual_seed(1))
    mirrored = [torch.allclose(o, i.flip(-1), atol=1e-5) for o, i in zip(out, x, strict=True)]
    kept = [torch.allclose(o, i, atol=1e-5) for o, i in zip(out, x, strict=True)]
    assert sum(mirrored) + sum(kept) == 40
    assert 8 <= sum(mirrored) <= 32


def test_quarter_turn_of_a_square_turns_it() -> None:
    x = torch.randn(64, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    turn = Augmentation(rotation=90, scale=0, shift=0, contrast=0, brightness=0)
    generator = torch.Generator().manual_seed(1)
    angles = (torch.rand(64, 7, generator=generator) * 2 - 1)[:, 0] * 90
    out = augmented(x, turn, generator=torch.Generator().manual_seed(1))
    nearest = int(angles.abs().argmax())
    quarter = torch.rot90(x[nearest], k=1 if angles[nearest] > 0 else -1, dims=(1, 2))
    other = torch.rot90(x[nearest], k=-1 if angles[nearest] > 0 else 1, dims=(1, 2))
    likeness = torch.stack([(out[nearest] * turned).mean() for turned in (quarter, other)])
    assert float(likeness.max()) > 0.4
    assert float(likeness.min()) < 0.3
