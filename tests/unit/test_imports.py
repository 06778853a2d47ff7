"""The import rules between folders, checked in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.structure import (
    PACKAGES,
    ROOT,
    arrows_of,
    circle_of,
    imports_of,
    modules_of,
    pairs_of,
)

FORBIDDEN = {
    "forgetting": {"registry", "serving", "ray"},
    "registry": {"forgetting", "serving", "ray", "torch"},
}
MOST_ARROWS = 45
"""The largest number of arrows between the rooms of `serving`; see `tests.structure`."""
WITHOUT_RAY = ("client", "config", "errors", "cli", "loadgen")
"""Rooms of `serving` that must not import Ray: they run before Ray starts, or without it."""
PURE = (
    "serving.coordination.membership",
    "serving.control.messages",
    "serving.coordination.messages",
    "serving.monitoring.evidence",
    "serving.monitoring.messages",
    "serving.monitoring.metrics",
    "serving.replica.lease",
    "serving.training.messages",
)
"""Modules that import neither Ray nor torch, directly or through modules of this project."""
MOST_NESTED_ARROWS = 60
"""As `MOST_ARROWS`, where folders in folders are rooms too."""
CLIENTS = tuple(
    f"serving.{room}.client"
    for room in ("api", "control", "coordination", "monitoring", "training")
)
"""The typed clients. They and `serving.cluster.actors`, which starts actors, may call them."""


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_keep_apart(package: str) -> None:
    found = [
        each
        for path in modules_of(package).values()
        for each in imports_of(path)
        if each.imported.split(".")[0] in FORBIDDEN[package]
    ]
    assert not found


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_folders_import_each_other_and_there_is_no_circle(
    package: str, nested: bool
) -> None:
    arrows = arrows_of(package, nested=nested)
    assert not pairs_of(arrows)
    assert not circle_of(arrows)


def test_the_rooms_of_serving_stay_few_arrows_apart() -> None:
    assert sum(map(len, arrows_of("serving").values())) <= MOST_ARROWS
    assert sum(map(len, arrows_of("serving", nested=True).values())) <= MOST_NESTED_ARROWS


def test_a_circle_and_a_pair_are_found(tmp_path: Path) -> None:
    for name, line in {
        "a/one": "from ..b.two import x",
        "b/two": "import serving.c",
        "c/__init__": "def f():\n    from serving.a import one",
        "d": "from serving.e import y",
        "e": "from serving import d",
    }.items():
        path = tmp_path / "serving" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    arrows = arrows_of("serving", tmp_path)
    assert circle_of(arrows) == ["a", "b", "c", "d", "e"]
    assert pairs_of(arrows) == [("d", "e")]


@pytest.mark.parametrize("room", WITHOUT_RAY)
def test_some_rooms_never_meet_ray(room: str) -> None:
    found = [
        each
        for name, path in modules_of("serving").items()
        for each in imports_of(path)
        if name.split(".")[1:2] == [room] and each.imported.split(".")[0] == "ray"
    ]
    assert not found


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_need_neither_ray_nor_torch(module: str) -> None:
    modules = {**modules_of("serving"), **modules_of("registry"), **modules_of("forgetting")}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        seen.add(name := waiting.pop())
        for each in imports_of(modules[name]):
            assert each.imported.split(".")[0] not in ("ray", "torch"), name
            ours = {each.imported, each.imported.rpartition(".")[0]} & modules.keys()
            waiting += ours - seen


def calls_an_actor(node: ast.AST) -> bool:
    """Whether it calls, finds or waits for an actor: by attribute, or by `getattr` and a string."""
    if isinstance(node, ast.Attribute):
        of_ray = isinstance(node.value, ast.Name) and node.value.id == "ray"
        return node.attr == "remote" or (of_ray and node.attr in ("get", "get_actor", "wait"))
    return isinstance(node, ast.Constant) and node.value == "remote"


def test_actors_are_called_through_their_typed_clients_alone() -> None:
    callers = {
        name
        for name, path in modules_of("serving").items()
        if any(calls_an_actor(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert callers == {*CLIENTS, "serving.cluster.actors"}


def private_of_ray(path: Path, root: Path = ROOT) -> list[str]:
    """What a module uses of Ray that Ray keeps for itself."""
    found = [
        each.imported
        for each in imports_of(path, root)
        if each.imported.startswith("ray.") and "._" in each.imported
    ]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"ray\.(.*\.)?_", ast.unparse(node)):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"RAY_\w+", node.value)
        elif isinstance(node, ast.Call) and re.match(r"(ray|serve)\.", ast.unparse(node.func)):
            found += [word.arg for word in node.keywords if (word.arg or "").startswith("_")]
    return found


def test_what_ray_keeps_for_itself_is_used_in_cluster_alone() -> None:
    found = {
        name: private_of_ray(path)
        for package in PACKAGES
        for name, path in modules_of(package).items()
        if not name.startswith("serving.cluster")
    }
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import node",
        "import ray.serve._private.constants",
        "ray._private.worker.global_worker.node",
        "ray.init(_system_config={})",
        "os.environ['RAY_SERVE_ENABLE_HA_PROXY'] = '1'",
    ],
)
def test_a_private_use_of_ray_is_noticed(tmp_path: Path, line: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(line)
    assert private_of_ray(module, tmp_path)


def test_only_publish_appends_to_the_ledger(project_root: Path) -> None:
    callers = {
        path.relative_to(project_root).parent.as_posix()
        for package in PACKAGES
        for path in (project_root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "append"
        and isinstance(node.func.value, ast.Name | ast.Attribute)
        and "ledger" in ast.unparse(node.func.value)
    }
    assert callers == {"registry/publish"}
