"""Benchmark cells with round figures, made by hand."""

from __future__ import annotations

from typing import Any

from forgetting.bench.cell import Cell, MarginFigures, TaskFigures
from forgetting.measure.accuracy import Share


def leak(
    recovery: float, *, reached: int | None = 5, served: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of `LeakFigures` that the tables read; every share is `recovery`."""
    point = {"epoch": 50, "acc_f": recovery, "acc_r": 0.9, "margin_f": None, "margin_r": None}
    return {
        "recovery": [{**point, "epoch": 0, "acc_f": 0.0}, point],
        "recovery_restarted": [point],
        "probe": [{"shots": n, "recall_f": recovery, "acc_r": 0.9} for n in (1, 5, 20, None)],
        "prototypes": [
            {"alpha": 0.5, "recall_f": recovery / 2, "acc_r": 0.9},
            {"alpha": 1.0, "recall_f": recovery, "acc_r": 0.9},
        ],
        "prototypes_fresh": [{"alpha": 1.0, "recall_f": recovery, "acc_r": 0.9}],
        "nearest_mean": {"alpha": 1.0, "recall_f": recovery, "acc_r": 0.9},
        "finetune": [
            {
                "scope": scope,
                "shots": shots,
                "steps": [10, 30, 100],
                "acc_f": [recovery] * 3,
                "prototype_f": None if shots else recovery,
            }
            for scope in ("head", "last_block", "lora", "all")
            for shots in (5, 0)
        ],
        "prompt": {"acc_f": recovery, "acc_r": 0.9, "shuffled_f": recovery / 2},
        "layers": [
            {"depth": depth, "probe": recovery, "neighbour": recovery} for depth in (1, 2, None)
        ],
        "quantised": [{"bits": n, "acc_f": 0.0, "acc_r": 0.9} for n in (8, 4)],
        "verified": {"auc": 0.6, "tar": recovery, "rank_1": 0.5, "genuine": 9, "impostor": 2000},
        "verified_r": {"auc": 0.9, "tar": 0.8, "rank_1": 0.9, "genuine": 99, "impostor": 9000},
        "relearn": {"steps": [0, 60], "acc_f": [0.0, 0.5], "target": 0.8, "reached": reached},
        "membership": [{"score": "loss", "auc": 0.4, "tpr": 0.02}],
        "strangers": None,
        "class_membership": [],
        "reading": {"auc": 0.9, "certain": 0.5, "forgotten": 20, "candidates": 100},
        "likeness": {"js_f": 0.1, "js_r": 0.2, "same_f": 0.6, "same_r": 0.8},
        "served": served,
    }


def task(
    number: int = 1,
    *,
    acc_r: int = 90,
    acc_f: int = 0,
    acc_o: int | None = None,
    cpu_seconds: float = 10.0,
    stored: int = 100,
    groups_kept: int | None = None,
    leaks: dict[str, Any] | None = None,
    margin: MarginFigures | None = None,
    updates: tuple[float, ...] | None = None,
) -> TaskFigures:
    """The figures of a task. `acc_*`: hits of 100 images; all of them were 90 before."""
    return TaskFigures(
        number=number,
        name=f"{100 - 20 * (number - 1)}-20",
        acc_r=Share(acc_r, 100),
        acc_r_before=Share(90, 100),
        acc_r_previous=Share(90, 100),
        acc_f=Share(acc_f, 100),
        acc_f_before=Share(90, 100),
        worst_class=acc_f / 100,
        acc_o=None if acc_o is None else Share(acc_o, 100),
        acc_o_before=None if acc_o is None else Share(90, 100),
        acc_m=None,
        acc_m_before=None,
        margin=margin,
        sure_r=None,
        sure_r_before=None,
        served=None,
        dump=Share(10, 100),
        dump_masked=Share(10, 100),
        ece=0.05,
        ece_before=0.04,
        js=0.1,
        parameters=10_000,
        trainable=200,
        stored=stored,
        stored_bytes=4 * stored,
        steps=300,
        cpu_seconds=cpu_seconds,
        groups_kept=groups_kept,
        groups_total=None if groups_kept is None else 6,
        update_norms=updates,
        leak=leaks,
    )


def cell(method: str, *tasks: TaskFigures, seed: int = 0, failed: str | None = None) -> Cell:
    return Cell(
        method=method,
        seed=seed,
        setting="100-2x20",
        tasks=tasks,
        failed=failed,
        determined_by={"seed": seed},
        code="abc",
    )
