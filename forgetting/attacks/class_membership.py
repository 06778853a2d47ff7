"""Was this class deleted, or was it never there? The neighbours' probabilities may tell.

A model that never saw a class spreads its images over the classes that look like it. A model that
was pushed away from a class may spread them in a way of its own, and that marks the class as
deleted. The attacker sees only probabilities. He knows some deleted classes and some that no model
saw, fits a classifier on how the probability falls from the nearest class to the next ones, and
asks it about *other* classes. He has learned the direction, so only an AUC above 0.5 is a leak.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forgetting.attacks.membership import Separation, entropy, separation
from forgetting.attacks.probe import fit
from forgetting.measure.features import Features

# How many of the nearest classes' probabilities the attacker looks at.
NEIGHBOURS = 10
_FOLDS = 5
# With fewer classes on a side the figure is noise.
_LEAST_CLASSES = 5
_ITERATIONS = 60


def class_membership(
    deleted: Features, strangers: Features, *, forgotten: Tensor
) -> tuple[Separation, ...]:
    """Tell deleted classes from classes that no model saw. Every class is judged unseen.

    Args:
        deleted: Test images of the forgotten classes.
        strangers: Images of classes that no model saw, with labels of their own.
        forgotten: Labels of all classes under erasure (k,). Their probabilities are left out.

    Returns:
        How well single images are told apart (`image`), and whole classes by the mean over their
        images (`class`). Empty with fewer than five classes on a side.
    """
    sides = [deleted, strangers]
    classes = [torch.unique(side.y) for side in sides]
    if min(len(labels) for labels in classes) < _LEAST_CLASSES:
        return ()
    seen = [_profile(side.logits, forgotten=forgotten) for side in sides]
    # The i-th class of a side is asked in fold i mod `_FOLDS`.
    fold = [
        torch.searchsorted(labels, side.y) % _FOLDS
        for side, labels in zip(sides, classes, strict=True)
    ]
    scores = [torch.zeros(len(side)) for side in sides]
    for held in range(_FOLDS):
        inside = [profile[f != held] for profile, f in zip(seen, fold, strict=True)]
        y = torch.cat([torch.full((len(p),), 1 - i) for i, p in enumerate(inside)])
        judge = fit(torch.cat(inside), y, penalty=1.0, steps=_ITERATIONS)
        asked = [
            judge(profile[f == held]).diff(dim=1).squeeze(1)
            for profile, f in zip(seen, fold, strict=True)
        ]
        # Judges of two folds have scales of their own.
        centre, spread = torch.cat(asked).mean(), torch.cat(asked).std().clamp_min(1e-6)
        for score, f, own in zip(scores, fold, asked, strict=True):
            score[f == held] = (own - centre) / spread
    by_class = [
        torch.stack([score[side.y == label].mean() for label in labels])
        for score, side, labels in zip(scores, sides, classes, strict=True)
    ]
    return (separation("image", *scores), separation("class", *by_class))


def _profile(logits: Tensor, *, forgotten: Tensor) -> Tensor:
    """Log-probabilities of the nearest retained classes, falling, and the entropy: (n, m + 1)."""
    kept = logits.index_fill(1, forgotten, -torch.inf)
    most = min(NEIGHBOURS, logits.shape[1] - len(forgotten))
    falling = kept.double().log_softmax(dim=1).topk(most, dim=1).values
    # A probability of zero has no logarithm; beyond this all are the same to an attacker.
    return torch.cat([falling.clamp_min(-50), entropy(kept)[:, None]], dim=1).float()
