from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgetting.bench.cell import (
    CellError,
    MarginFigures,
    cell_file,
    read_cell,
    samples_file,
    write_cell,
)
from tests.unit.forgetting.bench.cells import cell, leak, task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    margin = MarginFigures(0.7, 0.8, 0.0, 0.75, None)
    made = cell(
        "lethe",
        task(1, leaks=leak(0.3), margin=margin),
        task(2, acc_o=1, groups_kept=3, updates=(0.0, 1.5)),
    )
    path = cell_file(tmp_path, setting="s", method="lethe", seed=0, determined_by={"a": 1})
    write_cell(path, made, [{"task": "100-20"}])
    assert read_cell(path) == made
    return path


def test_samples_are_kept_beside_the_cell(path: Path) -> None:
    assert json.loads(gzip.decompress(samples_file(path).read_bytes())) == [{"task": "100-20"}]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(
        [path.name, samples_file(path).name]
    )


def test_name_follows_from_what_determines_the_cell(tmp_path: Path) -> None:
    def name(**facts: Any) -> str:
        return cell_file(tmp_path, setting="s", method="lethe", seed=0, determined_by=facts).name

    assert name(rate=1, steps=2) == name(steps=2, rate=1)
    assert name(rate=1, steps=2) != name(rate=1, steps=3)
    assert name(rate=1).startswith("lethe-seed0-")


def _facts(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def damaged(content: bytes) -> bytes:
        facts = json.loads(content)
        change(facts)
        return json.dumps(facts).encode()

    return damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[]",
        _facts(lambda f: f.update(format=99)),
        _facts(lambda f: f.pop("failed")),
        _facts(lambda f: f["tasks"][0].pop("ece")),
        _facts(lambda f: f["tasks"][0].update(more=1)),
        _facts(lambda f: f["tasks"][0].update(acc_r=0.5)),
        _facts(lambda f: f["tasks"][0].update(acc_r={"hits": "many", "n": 3})),
        _facts(lambda f: f["tasks"][0].update(ece="low")),
        _facts(lambda f: f["tasks"][1].update(update_norms=[None])),
    ],
)
def test_damaged_cell_is_an_error_and_never_a_figure(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CellError, match=path.name):
        read_cell(path)


def test_cell_without_its_samples_is_damaged(path: Path) -> None:
    samples_file(path).unlink()
    with pytest.raises(CellError, match="samples are missing"):
        read_cell(path)


def test_absent_cell_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_cell(tmp_path / "none.json")
