"""A report that passes every gate. Tests change a figure to make a gate fail."""

from __future__ import annotations

from forgetting.attacks.layers import LayerPoint
from forgetting.attacks.reading import Reading
from forgetting.measure.accuracy import Share
from forgetting.report.figures import Report
from forgetting.report.leaks import BlockLeak, LeakFigure, Leaks

LEAKS = Leaks(
    figures={
        "recovery": LeakFigure(after=0.1, before=0.9, chance=0.1, n=36),
        "probe_1": LeakFigure(after=0.3, before=0.9, chance=0.1, n=36),
        "probe_5": LeakFigure(after=0.5, before=0.95, chance=0.1, n=36),
        "probe_20": LeakFigure(after=0.6, before=0.95, chance=0.1, n=36),
        "prototypes": LeakFigure(after=0.2, before=0.95, chance=0.1, n=18),
        "nearest": LeakFigure(after=0.5, before=0.95, chance=0.1, n=36),
        "probe_last_block": LeakFigure(after=0.5, before=0.95, chance=0.1, n=36),
        "nearest_last_block": LeakFigure(after=0.5, before=0.95, chance=0.1, n=36),
        "verification": LeakFigure(after=0.7, before=0.97, chance=0.5, n=60),
    },
    blocks=tuple(
        BlockLeak(after=LayerPoint(depth, 0.5, 0.4), before=LayerPoint(depth, 0.95, 0.9))
        for depth in (1, 2, None)
    ),
    membership_auc=0.54,
    membership_before=0.6,
    reading=Reading(auc=0.99, certain=0.5, forgotten=2, candidates=10),
    images=200,
    fresh_shots=5,
    unmeasurable=None,
    cpu_seconds=1.5,
)

GOOD = Report(
    method="lethe",
    backbone="sha256:ab",
    data_digest="sha256:cd",
    seed=1,
    acc_r_before=Share(290, 300),
    acc_r_previous=Share(290, 300),
    acc_r_after=Share(289, 300),
    acc_r_weights=Share(289, 300),
    sure_r_before=Share(280, 300),
    sure_r_previous=Share(280, 300),
    sure_r_after=Share(279, 300),
    margin_r_before=None,
    margin_r_after=None,
    acc_m_before=None,
    acc_m_after=None,
    acc_f_before=Share(36, 36),
    acc_f_weights=Share(0, 36),
    acc_f_after=Share(0, 36),
    acc_o_before=Share(35, 36),
    acc_o_weights=Share(0, 36),
    acc_o_after=Share(0, 36),
    near_before=Share(104, 108),
    near_previous=Share(104, 108),
    near_after=Share(103, 108),
    by_subject_weights={"subject-1": Share(0, 36), "subject-2": Share(0, 36)},
    by_subject={"subject-1": Share(0, 36), "subject-2": Share(0, 36)},
    dump=Share(12, 36),
    dump_before=Share(11, 36),
    ece_before=0.03,
    ece_after=0.035,
    leak=Share(0, 35),
    emission=Share(1, 300),
    leaks=LEAKS,
    leaks_served=None,
    groups_kept=2,
    groups_total=6,
    adapter_bytes=63_000,
    seconds=8.0,
    steps=80,
    images={"forget_train": 100, "retain_train": 160},
    unmeasured=0,
)
