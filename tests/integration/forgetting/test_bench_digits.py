"""`lethe bench forgetting` on real scans: two methods, two tasks, one seed, from scratch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = [
    "--data", "digits", "--setting", "2x2", "--methods", "head_mask,gs_lora", "--seeds", "0",
    "--pretrain-steps", "40", "--steps", "10", "--references", "last",
]  # fmt: skip


def lethe(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "serving.cli", "bench", "forgetting", *options,
            "--work", str(folder / "work"), "--out", str(folder / "results"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def first(folder: Path) -> subprocess.CompletedProcess[str]:
    return lethe(folder, *OPTIONS)


def test_command_writes_tables_json_plots_and_answers(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stderr
    found = folder / "results" / "digits-10-2x2"
    page = (found / "table.md").read_text()
    for heading in ("Accuracies", "What leaks after 8-2 of 10-2x2", "What it costs, 10-2x2"):
        assert f"## {heading}\n" in page
    assert "## Bars" not in page  # lethe isn't among the methods
    assert page.strip() in first.stdout
    summary = json.loads((found / "summary.json").read_text())
    assert {cell["method"] for cell in summary["cells"]} == {
        "backbone", "retrained", "head_mask", "gs_lora",
    }  # fmt: skip
    assert {path.name for path in found.iterdir()} == {
        "table.md", "summary.json", "samples",
        "accuracy-10-2x2.png", "recovery-10-2x2.png", "sparsity-10-2x2.png",
    }  # fmt: skip
    assert len(list((found / "samples").iterdir())) == 4


def test_mask_leaks_what_the_backbone_leaks(
    folder: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stderr
    summary = json.loads((folder / "results" / "digits-10-2x2" / "summary.json").read_text())
    last = {cell["method"]: cell["tasks"][-1] for cell in summary["cells"]}
    assert last["head_mask"]["acc_f"]["hits"] == 0
    # The features are the same to the last bit, so every attack on them gives the same.
    assert last["head_mask"]["leak"]["probe"] == last["backbone"]["leak"]["probe"]
    assert last["head_mask"]["leak"]["nearest_mean"] == last["backbone"]["leak"]["nearest_mean"]
