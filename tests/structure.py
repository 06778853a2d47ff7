"""Shows which folders of a package import from which others: `make structure`.

A *room* is a folder of a package, or a module at the top of a package. An *arrow* goes from a room
to a room of the same package that it imports from, at the top of a module or inside a function.
This reads the source and runs nothing of the project.

`python -m tests.structure FOLDER` shows another checkout.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("registry", "forgetting", "serving")
ROOT = Path(__file__).resolve().parent.parent

Arrows = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Import:
    """One import. Both names are dotted, e.g. `serving.replica.slot`."""

    importer: str
    imported: str


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Every module of `package` by its dotted name."""
    return {module_name(path, root): path for path in sorted((root / package).rglob("*.py"))}


def imports_of(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Everything that the module at `path` imports. An imported name counts as a module."""
    importer = module_name(path, root)
    folder = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else ()
            source = ".".join((*above, *filter(None, [node.module])))
            yield from (Import(importer, f"{source}.{alias.name}") for alias in node.names)


def room_of(module: str, modules: Mapping[str, Path], *, nested: bool) -> str:
    """The room of `module`, named within its package. With `nested`, folders in folders count."""
    inside = module.split(".")[1:]
    if modules[module].name != "__init__.py":
        inside = inside[:-1] or inside
    return "/".join(inside if nested else inside[:1])


def arrows_of(package: str, root: Path = ROOT, *, nested: bool = False) -> Arrows:
    """Each room of `package` with the rooms that it imports from."""
    modules = modules_of(package, root)
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        if module == package:
            continue
        room = room_of(module, modules, nested=nested)
        own = arrows.setdefault(room, set())
        for each in imports_of(path, root):
            found = each.imported if each.imported in modules else each.imported.rpartition(".")[0]
            if found in modules and found != package:
                own.add(room_of(found, modules, nested=nested))
        own.discard(room)
    return {room: frozenset(reached) for room, reached in sorted(arrows.items())}


def pairs_of(arrows: Arrows) -> list[tuple[str, str]]:
    """Pairs of rooms that import from each other."""
    return [
        (room, other)
        for room, reached in arrows.items()
        for other in sorted(reached)
        if room < other and room in arrows[other]
    ]


def circle_of(arrows: Arrows) -> list[str]:
    """The rooms that import from themselves through other rooms."""

    def reached(room: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(arrows[room])
        while waiting:
            if (other := waiting.pop()) not in seen:
                seen.add(other)
                waiting += arrows[other]
        return seen

    return [room for room in arrows if room in reached(room)]


def main(root: Path) -> int:
    faults = 0
    for package in PACKAGES:
        for nested in (False, True):
            arrows = arrows_of(package, root, nested=nested)
            if nested and set(arrows) == set(arrows_of(package, root)):
                continue
            pairs, circle = pairs_of(arrows), circle_of(arrows)
            faults += len(pairs) + len(circle)
            count = sum(map(len, arrows.values()))
            title = f"{package}/" + (", folders in folders too" if nested else "")
            print(f"{title}: {len(arrows)} rooms, {count} arrows")
            for room, others in arrows.items():
                print(f"  {room:24} -> {' '.join(sorted(others)) or '-'}")
            print(f"  two-way pairs: {pairs or 'none'}; circles: {' '.join(circle) or 'none'}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
