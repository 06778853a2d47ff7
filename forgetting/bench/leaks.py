"""The attacks on one cell, and the figure that each one adds to the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forgetting.attacks.leak import AttackConfig, LeakFigures, attack
from forgetting.attacks.prompt import PromptConfig
from forgetting.bench.material import Material
from forgetting.data.image_set import indices
from forgetting.measure.accuracy import right
from forgetting.measure.features import rows
from forgetting.models.lite_hybrid import LiteHybrid


def leak_figures(
    material: Material, number: int, gone: Tensor, *, weights: nn.Module, served: nn.Module
) -> dict[str, Any]:
    """Attack a model with all training images, on all classes under erasure so far.

    Args:
        material: Images, the bare backbone and the reference.
        number: Number of the task, from 1.
        gone: Labels under erasure (k,).
        weights: The model to attack, without feature edits.
        served: The model as served; the same object if there is no edit.

    Returns:
        The fields of `LeakFigures` by the weights as JSON values, and under `served` those of the
        served model (None if it is the same).
    """
    found = asdict(_attacked(material, number, gone, weights))
    edited = served is not weights
    return {
        **found,
        "served": asdict(_attacked(material, number, gone, served)) if edited else None,
    }


def _attacked(material: Material, number: int, gone: Tensor, model: nn.Module) -> LeakFigures:
    train, test = (material.samples(indices(material.images, part)) for part in ("train", "test"))
    bare = rows(material.bare, torch.isin(material.bare.y, gone))
    # A prompt is learned through the pixels. Behind a frozen stem that would take an hour.
    stem = isinstance(model, LiteHybrid)
    return attack(
        model,
        train=train,
        test=test,
        forgotten=gone,
        # The same state for every method of a seed, so that all get the same draws.
        generator=torch.Generator().manual_seed(2_000_000 + material.seed),
        before=right(bare.logits, bare.y).value,
        strangers=material.strangers if len(material.strangers) else None,
        reference=material.never.get(number),
        original=material.bare,
        config=AttackConfig(prompt=None if stem else PromptConfig()),
    )


@dataclass(frozen=True)
class LeakColumn:
    """A row of the leak table. `read` gives None if the figure wasn't measured."""

    key: str
    title: str
    read: Callable[[Mapping[str, Any]], float | None]
    unit: Literal["share", "steps", "bits"] = "share"


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


def _finetune(scope: str, shots: int, steps: int) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        for curve in leak["finetune"]:
            if (curve["scope"], curve["shots"]) == (scope, shots):
                found = dict(zip(curve["steps"], curve["acc_f"], strict=True))
                return float(found[steps]) if steps in found else None
        return None

    return read


def _retain_only_prototypes(scope: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        for curve in leak["finetune"]:
            if (curve["scope"], curve["shots"]) == (scope, 0):
                return float(curve["prototype_f"])
        return None

    return read


def _within(part: str, field: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        return None if leak[part] is None else float(leak[part][field])

    return read


def _prompt_gain(leak: Mapping[str, Any]) -> float | None:
    found = leak["prompt"]
    return None if found is None else float(found["acc_f"] - found["shuffled_f"])


def _layer(blocks_from_top: int, field: str) -> Callable[[Mapping[str, Any]], float | None]:
    """At the feature (0), the last block's output (1), the one below (2), ..."""

    def read(leak: Mapping[str, Any]) -> float | None:
        points = leak["layers"]
        return float(points[-1 - blocks_from_top][field]) if len(points) > blocks_from_top else None

    return read


def _quantised(bits: int) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        return next((float(p["acc_f"]) for p in leak["quantised"] if p["bits"] == bits), None)

    return read


def _verified(who: str, field: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(leak: Mapping[str, Any]) -> float | None:
        found = leak[who]
        return None if found is None or found[field] is None else float(found[field])

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


def _class_membership(leak: Mapping[str, Any]) -> float | None:
    """One-sided: the attacker has learned the direction on other classes."""
    return max((float(s["auc"]) for s in leak["class_membership"]), default=None)


LEAK_COLUMNS: tuple[LeakColumn, ...] = (
    LeakColumn("recovery", "recovery", _recovery("recovery", "acc_f")),
    LeakColumn("recovery_margin", "recovery (margin)", _recovery("recovery", "margin_f")),
    LeakColumn("restarted", "recovery, new rows", _recovery("recovery_restarted", "acc_f")),
    LeakColumn("probe1", "probe 1", _probe(1)),
    LeakColumn("probe5", "probe 5", _probe(5)),
    LeakColumn("probe20", "probe 20", _probe(20)),
    LeakColumn("pra5", "PRA-5", _prototypes("prototypes")),
    LeakColumn("pra_fresh", "PRA, fresh images", _prototypes("prototypes_fresh")),
    *(
        LeakColumn(f"block5_{n}", f"last block, 5 shots, {n} steps", _finetune("last_block", 5, n))
        for n in (10, 30, 100)
    ),
    *(
        LeakColumn(f"retain_only_{n}", f"retain only, {n} steps", _finetune("last_block", 0, n))
        for n in (10, 30, 100)
    ),
    LeakColumn("retain_only_pra", "retain only, then PRA-5", _retain_only_prototypes("last_block")),
    LeakColumn("retain_all_100", "retain only, all weights, 100 steps", _finetune("all", 0, 100)),
    LeakColumn("head5_100", "head, 5 shots, 100 steps", _finetune("head", 5, 100)),
    LeakColumn("lora5_100", "new LoRA, 5 shots, 100 steps", _finetune("lora", 5, 100)),
    LeakColumn("all5_100", "all weights, 5 shots, 100 steps", _finetune("all", 5, 100)),
    LeakColumn("prompt", "visual prompt, 5 shots", _within("prompt", "acc_f")),
    LeakColumn("prompt_gain", "of it by true labels", _prompt_gain),
    LeakColumn("probe_feature", "probe at the feature", _layer(0, "probe")),
    LeakColumn("probe_last", "probe at the last block", _layer(1, "probe")),
    LeakColumn("probe_below", "probe one block below", _layer(2, "probe")),
    LeakColumn("nn_feature", "1-NN at the feature", _layer(0, "neighbour")),
    LeakColumn("nn_last", "1-NN at the last block", _layer(1, "neighbour")),
    LeakColumn("int8", "Acc_f in 8 bits", _quantised(8)),
    LeakColumn("int4", "Acc_f in 4 bits", _quantised(4)),
    LeakColumn("tar_f", "TAR at FAR 0.1 %, forgotten", _verified("verified", "tar")),
    LeakColumn("tar_r", "TAR at FAR 0.1 %, retained", _verified("verified_r", "tar")),
    LeakColumn("rank_1_f", "gallery search, forgotten", _verified("verified", "rank_1")),
    LeakColumn("rank_1_r", "gallery search, retained", _verified("verified_r", "rank_1")),
    LeakColumn("auc_f", "verification AUC, forgotten", _verified("verified", "auc")),
    LeakColumn("auc_r", "verification AUC, retained", _verified("verified_r", "auc")),
    LeakColumn("relearn", "relearn steps", _relearn, unit="steps"),
    LeakColumn("membership", "membership AUC", _separation("membership", "auc")),
    LeakColumn("membership_tpr", "TPR at 1 % FPR", _separation("membership", "tpr")),
    LeakColumn("stranger", "told from strangers, AUC", _separation("strangers", "auc")),
    LeakColumn("class_membership", "the same by neighbours, AUC", _class_membership),
    LeakColumn("reading", "read from the adapter, AUC", _within("reading", "auc")),
    LeakColumn("same_f", "answers like never saw, forgotten", _within("likeness", "same_f")),
    LeakColumn("same_r", "answers like never saw, retained", _within("likeness", "same_r")),
    LeakColumn("js_r", "JS, retained", _within("likeness", "js_r"), unit="bits"),
)
