"""How close is a model to one that never saw the classes? Both sides count.

To leak less than the model that never saw a class is a mark of its own: it tells that somebody was
deleted. And a model that forgets by damaging its other answers is far from that model on retained
images (arXiv 2606.25001).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from forgetting.measure.calibration import jensen_shannon
from forgetting.measure.features import Features, split


@dataclass(frozen=True)
class Likeness:
    """Two models' answers to the same test images, of forgotten (f) and of retained (r) classes.

    Attributes:
        js_f: Mean Jensen-Shannon divergence, in bits 0..1.
        js_r: The same on retained classes.
        same_f: Share of images with the same most probable class.
        same_r: The same on retained classes.
    """

    js_f: float
    js_r: float
    same_f: float
    same_r: float


def likeness(own: Features, never: Features, *, forgotten: Tensor) -> Likeness:
    """Compare a model with one that never saw the forgotten classes.

    Args:
        own: Test images of all classes.
        never: The same images in the same order, in the other model.
        forgotten: Labels (k,).
    """
    parts = zip(split(own, forgotten=forgotten), split(never, forgotten=forgotten), strict=True)
    (js_f, same_f), (js_r, same_r) = (
        (
            jensen_shannon(a.logits, b.logits),
            float((a.logits.argmax(dim=1) == b.logits.argmax(dim=1)).float().mean()),
        )
        for a, b in parts
    )
    return Likeness(js_f=js_f, js_r=js_r, same_f=same_f, same_r=same_r)
