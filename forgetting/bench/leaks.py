"""The attacks on one cell, and the figure that each one adds to the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forgetting.attacks.leak import attack
from forgetting.bench.material import Material
from forgetting.data.image_set import indices
from forgetting.measure.accuracy import right
from forgetting.measure.features import rows


def leak_figures(material: Material, gone: Tensor, model: nn.Module) -> dict[str, Any]:
    """Attack a model with all training images, on all classes under erasure so far.

    Args:
        material: Images and the bare backbone.
        gone: Labels under erasure (k,).
        model: The model to attack.

    Returns:
        The fields of `LeakFigures` as JSON values.
    """
    train, test = (material.samples(indices(material.images, part)) for part in ("train", "test"))
    bare = rows(material.bare, torch.isin(material.bare.y, gone))
    found = attack(
        model,
        train=train,
        test=test,
        forgotten=gone,
        # The same state for every method of a seed, so that all get the same draws.
        generator=torch.Generator().manual_seed(2_000_000 + material.seed),
        before=right(bare.logits, bare.y).value,
        strangers=material.strangers if len(material.strangers) else None,
    )
    return asdict(found)


@dataclass(frozen=True)
class LeakColumn:
    """A column of the leak table. `read` gives None if the figure wasn't measured."""

    key: str
    title: str
    read: Callable[[Mapping[str, Any]], float | None]
    share: bool = True


def _recovery(curve: str, field: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        value: float | None = leak[curve][-1][field]
        return value

    return read


def _probe(shots: int) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        return next((float(p["recall_f"]) for p in leak["probe"] if p["shots"] == shots), None)

    return read


def _prototypes(points: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        return max(float(point["recall_f"]) for point in leak[points])

    return read


def _relearn(leak: Mapping[str, Any]) -> float | None:
    """Steps to relearn; the most steps tried if that wasn't enough, for every method alike."""
    curve = leak["relearn"]
    if curve is None:
        return None
    return float(curve["steps"][-1] if curve["reached"] is None else curve["reached"])


def _separation(name: str, field: str) -> Callable[[Mapping[str, Any]], float | None]:
    """The figure of the best score: 0.5 + |AUC - 0.5|, or the TPR at 1 % FPR."""

    def read(leak: Mapping[str, Any]) -> float | None:
        scores = leak[name]
        if not scores:
            return None
        if field == "auc":
            return max(0.5 + abs(float(s["auc"]) - 0.5) for s in scores)
        return max(float(s["tpr"]) for s in scores)

    return read


LEAK_COLUMNS: tuple[LeakColumn, ...] = (
    LeakColumn("recovery", "recovery", _recovery("recovery", "acc_f")),
    LeakColumn("recovery_margin", "recovery (margin)", _recovery("recovery", "margin_f")),
    LeakColumn("restarted", "recovery, new rows", _recovery("recovery_restarted", "acc_f")),
    LeakColumn("probe1", "probe 1", _probe(1)),
    LeakColumn("probe5", "probe 5", _probe(5)),
    LeakColumn("probe20", "probe 20", _probe(20)),
    LeakColumn("pra5", "PRA-5", _prototypes("prototypes")),
    LeakColumn("pra_fresh", "PRA, fresh images", _prototypes("prototypes_fresh")),
    LeakColumn("relearn", "relearn steps", _relearn, share=False),
    LeakColumn("membership", "membership AUC", _separation("membership", "auc")),
    LeakColumn("membership_tpr", "TPR at 1 % FPR", _separation("membership", "tpr")),
    LeakColumn("stranger", "told from strangers, AUC", _separation("strangers", "auc")),
)
