from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forgetting.bench.bars import Bar, judge
from forgetting.bench.cell import Cell, MarginFigures, ServedFigures
from forgetting.bench.leaks import LEAK_COLUMNS
from forgetting.bench.paper import PaperRow, read_paper
from forgetting.bench.plots import write_plots
from forgetting.bench.summary import Column, Summary, estimate, leak_reader
from forgetting.bench.summary import leak as leak_figure
from forgetting.bench.table import markdown
from forgetting.bench.tuning import Choice
from forgetting.errors import DataError
from tests.unit.forgetting.bench.cells import cell, leak, task

SETTING = "100-2x20"
LAST = Column(SETTING, 2, "80-20")


def field(
    *, lethe_acc_r: tuple[int, int] = (90, 90), published_leak: float = 0.7, lethe_leak: float = 0.2
) -> Summary:
    """Backbone, retrained, mask, published and lethe; two tasks, seeds 0 and 1."""
    cells: list[Cell] = []
    for name, leaks, cpu in (
        ("backbone", 0.9, 0.0),
        ("retrained", 0.4, 100.0),
        ("head_mask", 0.9, 0.0),
        ("gs_lora_published", published_leak, 60.0),
        ("lethe", lethe_leak, 10.0),
    ):
        for seed in (0, 1):
            acc_r = {"gs_lora_published": 80, "lethe": lethe_acc_r[seed]}.get(name, 90)
            acc_f = 90 if name == "backbone" else 0
            cells.append(
                cell(
                    name,
                    task(1, acc_r=acc_r, acc_f=acc_f, cpu_seconds=cpu, groups_kept=3),
                    task(
                        2,
                        acc_r=acc_r,
                        acc_f=acc_f,
                        acc_o=acc_f,
                        cpu_seconds=cpu,
                        groups_kept=3,
                        leaks=leak(leaks),
                    ),
                    seed=seed,
                )
            )
    return Summary(tuple(cells))


def bar(summary: Summary, figure: str) -> Bar:
    (found,) = [b for b in judge(summary, SETTING) if b.figure == figure]
    return found


def test_mean_and_interval_are_those_of_a_hand_computation() -> None:
    # 0.90, 0.80: mean 0.85, s / sqrt(2) = 0.05, t(0.975, 1) = 12.706
    found = field(lethe_acc_r=(90, 80)).mean("lethe", LAST, lambda t: t.acc_r.value)
    assert found is not None
    assert found.mean == pytest.approx(0.85)
    assert found.half == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert found.n == 2


def test_single_seed_has_no_interval_and_no_seed_no_mean() -> None:
    one = estimate([0.5])
    assert one is not None
    assert (one.mean, one.half) == (0.5, None)
    assert estimate([]) is None


def test_excess_is_taken_seed_by_seed_over_the_retrained() -> None:
    found = field().excess("gs_lora_published", LAST, leak_figure("recovery"))
    assert found is not None
    assert found.mean == pytest.approx(0.3)
    assert found.half == pytest.approx(0.0, abs=1e-12)
    without = Summary(tuple(c for c in field().cells if c.method != "retrained"))
    assert without.excess("lethe", LAST, leak_figure("recovery")) is None


def test_h_is_that_of_drop_and_acc_r() -> None:
    found = field().mean("gs_lora_published", LAST, lambda t: t.h)
    assert found is not None
    assert found.mean == pytest.approx(2 * 0.8 * 0.9 / (0.8 + 0.9))


def test_leak_columns_read_the_worst_of_each_attack() -> None:
    figures = task(1, leaks=leak(0.6, reached=None))
    read = {c.key: leak_reader(c)(figures) for c in LEAK_COLUMNS}
    assert read["recovery"] == read["probe1"] == read["probe20"] == read["pra5"] == 0.6
    assert read["recovery_margin"] is None
    assert read["stranger"] is None
    assert read["relearn"] == 60  # never reached: the cap
    assert read["membership"] == pytest.approx(0.6)  # an AUC of 0.4 reveals as much as 0.6
    assert leak_figure("recovery")(task(1)) is None


def test_bars_that_are_met_are_met() -> None:
    assert {b.figure: b.met for b in judge(field(), SETTING)} == {
        "H": True,
        "Acc_f": True,
        "Acc_o": True,
        "Acc_r": True,
        "Acc_r by the margin": None,
        "Acc_r at the threshold": None,
        "groups kept": True,
        "20-shot probe, feature": True,
        "20-shot probe, last block": True,
        "1-NN, feature": True,
        "1-NN, last block": True,
        "5-shot prototypes": True,
        "last block, 5 shots, 10 steps": True,
        "last block, 5 shots, 30 steps": True,
        "last block, 5 shots, 100 steps": True,
        "retain only, 10 steps": True,
        "retain only, 30 steps": True,
        "retain only, 100 steps": True,
        "TAR at FAR 0.1 %, forgotten": True,
        "TAR at FAR 0.1 %, retained": True,
        "CPU seconds a task": True,
        "CPU seconds of the closed form": None,
    }


@pytest.mark.parametrize(
    ("summary", "figure"),
    [
        (field(lethe_acc_r=(79, 79)), "H"),
        (field(lethe_acc_r=(88, 88)), "Acc_r"),
        (field(lethe_leak=0.46), "5-shot prototypes"),
        (field(lethe_leak=0.46), "retain only, 100 steps"),
        (field(lethe_leak=0.44), "TAR at FAR 0.1 %, forgotten"),
        (field(lethe_acc_r=(79, 79)), "CPU seconds a task"),
    ],
)
def test_bar_that_is_missed_says_no(summary: Summary, figure: str) -> None:
    found = bar(summary, figure)
    assert found.met is False
    assert "**no**" in markdown(summary, title="t", facts=[])


def test_bar_without_its_rows_is_not_measured_and_never_met() -> None:
    alone = Summary(tuple(c for c in field().cells if c.method in ("backbone", "lethe")))
    unmeasured = {"H", "5-shot prototypes", "retain only, 100 steps", "CPU seconds a task"}
    assert {b.figure for b in judge(alone, SETTING) if b.met is None} >= unmeasured
    assert not any(b.met for b in judge(alone, SETTING) if b.figure in unmeasured)
    assert judge(Summary(()), SETTING) == ()


def test_seed_that_broke_down_meets_no_bar() -> None:
    broken = cell("lethe", task(1), seed=2, failed="task 2: training broke down")
    bars = judge(Summary((*field().cells, broken)), SETTING)
    assert bars
    assert not any(found.met for found in bars)
    assert "without seed 2, which broke down" in bars[0].found


def test_head_mask_does_not_count_against_h_and_is_explained() -> None:
    summary = field(lethe_acc_r=(89, 89))  # below the mask, above the published recipe
    assert bar(summary, "H").met is True
    assert "tops H by construction" in markdown(summary, title="t", facts=[])


def test_table_shows_means_intervals_and_excess() -> None:
    page = markdown(field(lethe_acc_r=(90, 80)), title="Digits", facts=["Seeds 0, 1."])
    assert page.startswith("# Digits\n\n- Seeds 0, 1.\n")
    assert "100-20: H / Acc_r / Acc_f / Acc_o" in page
    (row,) = [x for x in page.splitlines() if x.startswith("| `lethe` |") and " / " in x]
    assert f"85.0 ±{100 * 12.7062 * 0.05:.1f}" in row
    assert "20.0 ±0.0 (-20.0 ±0.0)" in page  # recovery of lethe and its excess
    assert "| 6.0 |" in page  # times faster than the published recipe


def test_papers_rows_stand_below_ours_where_the_tasks_have_their_names() -> None:
    row = PaperRow("GS-LoRA", "gs_lora_published", {"100-20": {"h": 74.4, "acc_r": 74.16}})
    lines = markdown(field(), title="t", facts=[], paper=[row]).splitlines()
    place = next(i for i, x in enumerate(lines) if x.startswith("| *GS-LoRA, paper*"))
    assert lines[place] == "| *GS-LoRA, paper* | 74.40 / 74.16 / – / – | – | – |"
    assert lines[place - 1].startswith("| `gs_lora_published` |")


def test_papers_rows_of_faces_stand_with_the_margin_figures() -> None:
    margin = MarginFigures(0.7, 0.8, 0.0, 0.75, None)
    summary = Summary(
        (cell("backbone", task(1, margin=margin)), cell("l2", task(1, margin=margin)))
    )
    row = PaperRow("L2*", "l2", {"100-20": {"h": 66.91}})
    page = markdown(summary, title="t", facts=[], paper=[row])
    plain, margins = page.split("## Accuracies with the head's margin")
    assert "L2*" not in plain
    assert "| *L2*, paper* | 66.91 / – / – / – |" in margins
    assert f"{200 * 0.7 * 0.75 / 1.45:.1f} / 70.0 / 0.0 / –" in margins


def test_method_that_broke_down_says_why() -> None:
    broken = cell("scrub", failed="task 1: training broke down at step 3")
    page = markdown(Summary((*field().cells, broken)), title="t", facts=[])
    assert "- `scrub`, seed 0, 100-2x20, ended early: task 1: training broke down" in page
    assert "| `scrub` | – | – | – |" in page


def test_choices_are_printed_with_what_was_tried() -> None:
    choice = Choice({"rate": 0.1}, (({}, 0.5), ({"rate": 0.1}, 0.75), ({"rate": 9}, None)), 1000)
    page = markdown(field(), title="t", facts=[], choices={(SETTING, "l2"): choice})
    assert "| rate 0.1 | 1000 | defaults: 50.0%; rate 0.1: 75.0%; rate 9: broke down |" in page


def test_plots_are_written_for_what_was_measured(tmp_path: Path) -> None:
    summary = Summary(
        (
            *field().cells,
            cell("l2", task(1, updates=(0.0, 2.0)), task(2, acc_o=0, updates=(0.0, 1.0))),
        )
    )
    names = {p.name for p in write_plots(summary, tmp_path)}
    assert names == {f"{kind}-{SETTING}.png" for kind in ("accuracy", "recovery", "sparsity")}
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    few = Summary((cell("backbone", task(1)),))
    assert [p.name for p in write_plots(few, tmp_path)] == [f"accuracy-{SETTING}.png"]


def test_papers_config_files_are_read(project_root: Path) -> None:
    files = sorted((project_root / "benchmarks" / "papers").glob("*.toml"))
    assert len(files) >= 5
    for file in files:
        found = read_paper(file)
        assert found.setting
        assert found.rows
        figures = [v for r in found.rows for t in r.tasks.values() for v in t.values()]
        assert all(0 <= v <= 100 for v in figures)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("setting = ", "is not valid TOML"),
        ("setting = 4", "expected setting to be of type str"),
        ('[paper."L2"]\ntasks = [{h = 3}]', "entry of .paper. is of the wrong kind"),
    ],
)
def test_wrong_config_file_is_refused_with_a_sentence(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "paper.toml"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_paper(file)
    with pytest.raises(DataError, match="can't be read"):
        read_paper(tmp_path / "none.toml")


def test_losses_count_by_task_and_in_all_and_a_gain_is_none() -> None:
    def summary(*lost: int) -> Summary:
        margins = [MarginFigures((50 - loss) / 100, 0.5, 0.0, 0.5, None) for loss in lost]
        tasks = [task(i + 1, margin=m) for i, m in enumerate(margins)]
        return Summary((cell("backbone", *tasks), cell("lethe", *tasks)))

    title = "Acc_r by the margin"
    assert bar(summary(1, 2), title).met
    assert bar(summary(-5, -4), title).met
    assert not bar(summary(0, 2), title).met  # two points by the second task
    assert not bar(summary(1, 2, 3, 4), title).met  # four in all


def test_what_is_served_stands_beside_what_the_weights_say() -> None:
    edited = replace(task(1, acc_f=90), served=ServedFigures(0.88, 0.0, None))
    backbone = cell("backbone", task(1, acc_f=90))
    page = markdown(Summary((backbone, cell("project", edited))), title="t", facts=[])
    assert "## As served, with feature edits" in page
    assert "88.0 / 0.0 / –" in page
    plain = markdown(Summary((backbone, cell("lethe", task(1)))), title="t", facts=[])
    assert "As served" not in plain
