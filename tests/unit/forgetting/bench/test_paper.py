"""The papers' tables as configs: readable, complete, and consistent with their own formula."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from forgetting.bench.paper import read_paper
from forgetting.bench.setting import Setting, parse_settings
from forgetting.measure.accuracy import h_mean
from forgetting.methods import METHODS

NAMES = (
    "casia100_single",
    "casia100_continual",
    "casia100_fewshot",
    "casia100_missing",
    "imagenet100_continual",
)
FIGURES = {"h", "acc_r", "acc_f", "acc_o", "acc_m"}
# The two rows of the printed tables that disagree with their own formula; each has a note.
MISPRINTS = {("casia100_continual", "GS-LoRA++", "100-20"), ("casia100_single", "LwF", "100-5")}


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest, project_root: Path) -> tuple[str, dict[str, Any]]:
    return request.param, read(project_root, request.param)


def read(root: Path, name: str) -> dict[str, Any]:
    return tomllib.loads((root / "benchmarks" / "papers" / f"{name}.toml").read_text())


def settings(table: dict[str, Any]) -> tuple[Setting, ...]:
    return parse_settings(
        table["setting"],
        available=100,
        shots=table.get("shots"),
        missing=table.get("missing", 0),
    )


def test_no_config_is_left_out(project_root: Path) -> None:
    found = {path.stem for path in (project_root / "benchmarks" / "papers").glob("*.toml")}
    assert found == set(NAMES)


def test_config_names_what_a_run_needs(config: tuple[str, dict[str, Any]]) -> None:
    _, table = config
    assert set(table) - {"shots", "missing"} == {"setting", "data", "backbone", "methods", "paper"}
    assert len(table["methods"]) == len(set(table["methods"]))
    assert set(table["methods"]) <= METHODS.keys()
    rows = {row["method"] for row in table["paper"].values() if "method" in row}
    assert rows <= set(table["methods"])


def test_the_bench_reads_the_config(config: tuple[str, dict[str, Any]], project_root: Path) -> None:
    name, table = config
    known = read_paper(project_root / "benchmarks" / "papers" / f"{name}.toml")
    assert (known.setting, known.shots) == (table["setting"], table.get("shots"))
    assert list(known.methods) == table["methods"]
    assert [row.tasks.keys() for row in known.rows] == [
        {task["name"] for task in row["tasks"]} for row in table["paper"].values()
    ]


def test_rows_are_about_the_tasks_of_the_setting(config: tuple[str, dict[str, Any]]) -> None:
    _, table = config
    tasks = {s.task_name(i) for s in settings(table) for i in range(1, s.tasks + 1)}
    assert {task["name"] for task in table["paper"]["Pre-train"]["tasks"]} == tasks
    for row in table["paper"].values():
        names = [task["name"] for task in row["tasks"]]
        assert len(names) == len(set(names))
        assert set(names) <= tasks
        for task in row["tasks"]:
            assert set(task) - {"name"}
            assert set(task) - {"name"} <= FIGURES
            assert all(0 <= task[key] <= 100 for key in task.keys() & FIGURES)


def test_acc_o_is_given_only_where_something_was_forgotten_before(
    config: tuple[str, dict[str, Any]],
) -> None:
    _, table = config
    later = {s.task_name(i) for s in settings(table) for i in range(2, s.tasks + 1)}
    for row in table["paper"].values():
        assert {task["name"] for task in row["tasks"] if "acc_o" in task} <= later


def disagreements(name: str, table: dict[str, Any]) -> tuple[set[tuple[str, str, str]], int]:
    """(rows whose H differs by more than .1 from that of Acc_r and Drop, rows checked)."""
    before = {task["name"]: task.get("acc_f") for task in table["paper"]["Pre-train"]["tasks"]}
    off, looked_at = set(), 0
    for method, row in table["paper"].items():
        for task in row["tasks"]:
            if "source" in row or not {"h", "acc_r", "acc_f"} <= task.keys():
                continue  # from another pre-trained model, or not all figures were printed
            if before[task["name"]] is None:
                continue
            looked_at += 1
            h = h_mean(task["acc_r"], before[task["name"]] - task["acc_f"])
            if abs(h - task["h"]) > 0.1:
                off.add((name, method, task["name"]))
    return off, looked_at


def test_h_follows_from_acc_r_and_drop_but_for_two_misprints(project_root: Path) -> None:
    off, looked_at = set(), 0
    for name in NAMES:
        found, rows = disagreements(name, read(project_root, name))
        off |= found
        looked_at += rows
    assert off == MISPRINTS
    assert looked_at == 36 + 36 + 16 + 12  # single, continual, few-shot, ImageNet


def test_each_misprint_has_a_note(project_root: Path) -> None:
    for name, method, task in MISPRINTS:
        row = read(project_root, name)["paper"][method]
        assert row["note"].startswith(f"{task} as printed")


def test_rows_of_missing_classes_agree_on_the_accuracy_before(project_root: Path) -> None:
    # Table 5 prints no Acc_f before: H = 2 r d / (r + d) gives d, and before = d + Acc_f.
    implied: dict[str, list[float]] = {}
    for row in read(project_root, "casia100_missing")["paper"].values():
        for task in row["tasks"]:
            if "h" in task:
                drop = 1 / (2 / task["h"] - 1 / task["acc_r"])
                implied.setdefault(task["name"], []).append(drop + task["acc_f"])
    assert [len(values) for values in implied.values()] == [2] * 4
    for values in implied.values():
        assert max(values) - min(values) < 0.1
