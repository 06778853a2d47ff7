"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FORBIDDEN = {
    "forgetting": {"registry", "serving", "ray"},
    "registry": {"forgetting", "serving", "ray", "torch"},
}
RAY_USERS = {
    "activation", "app", "coordinator", "member", "replica", "start", "trainer", "answering",
    "job_events", "operator_probes", "problems", "ray_export", "remote_training", "watch", "worker",
}  # fmt: skip
PURE = {"evidence", "metrics"}


def modules(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, imported module) of every import in `folder`."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.stem, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path.stem, node.module


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_keep_apart(project_root: Path, package: str) -> None:
    found = {
        (file, name)
        for file, name in modules(project_root / package)
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert not found


@pytest.mark.parametrize("package", ["forgetting"])
def test_folders_of_a_package_import_in_one_direction(project_root: Path, package: str) -> None:
    folders = {path.parent.name for path in (project_root / package).glob("*/__init__.py")}
    below = {
        folder: {
            name.split(".")[1]
            for _, name in modules(project_root / package / folder)
            if name.startswith(f"{package}.")
        }
        - {folder}
        for folder in folders
    }
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_ray_is_imported_only_where_processes_meet(project_root: Path) -> None:
    users = {f for f, name in modules(project_root / "serving") if name.split(".")[0] == "ray"}
    assert users <= RAY_USERS


def test_evidence_and_metrics_need_nothing_of_ours(project_root: Path) -> None:
    ours = {"serving", "registry", "forgetting"}
    found = {
        (file, name)
        for file, name in modules(project_root / "serving")
        if file in PURE and name.split(".")[0] in ours
    }
    assert not found


def test_only_publish_appends_to_the_ledger(project_root: Path) -> None:
    callers = {
        str(path.parent.relative_to(project_root))
        for package in ("serving", "registry", "forgetting")
        for path in (project_root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and isinstance(node.func.value, ast.Name | ast.Attribute)
        and "ledger" in ast.unparse(node.func.value)
    }
    assert callers == {"registry/publish"}
