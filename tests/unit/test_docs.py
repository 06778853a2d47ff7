"""The documents: what they name exists, links lead to headings, and they are short."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure import PACKAGES, ROOT, arrows_of, modules_of

MOST_WORDS = 120
"""Of a paragraph, or of one item of a list."""
MOST_WORDS_OF_A_DECISION = 250
LONGEST_WALK = 12
"""Files from the command line to a replica."""

PAGES = sorted((ROOT / "docs").rglob("*.md"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
BESIDE = [ROOT / name for name in ("CHANGELOG.md", "SECURITY.md", "benchmarks/RESULTS.md")]
FOLDERS = (".ci", ".github", "benchmarks", "deploy", "docs", *PACKAGES, "tests")

FOREIGN = {"Authorization", "Drop", "SessionName", "VisionTransformer", "WorkerId"}
"""Written like classes, and not ours: of HTTP, of Prometheus, and a class of timm."""
ASKED = {
    "Coordinator": "coordinator",
    "Control": "control",
    "BlockingControl": "control",
    "Trainer": "trainer",
    "Monitor": "monitor",
    "AsyncMonitor": "monitor",
    "Watch": "watch",
    "OperatorApi": "operator API",
}
"""Typed client, less `Client` -> who is asked, as the table of processes names it."""

_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^(#+) +(.+)$", re.MULTILINE)
_ITEM = re.compile(r"^ *(?:[-*+]|\d+[.)]) +", re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?<![\w./<>$-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
_FILE = re.compile(r"[\w-]+\.(?:py|html|css|js)")
_DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[a-zA-Z_]\w*)+")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*(?:\.[a-z_]\w*)?")
_STEP = re.compile(r"^\d+\. `([\w./]+)`, `(\w+)`: ", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def each(*pages: list[Path]) -> pytest.MarkDecorator:
    found = [page for some in pages for page in some]
    return pytest.mark.parametrize("page", found, ids=[name_of(page) for page in found])


def prose_of(text: str) -> str:
    """The text without code blocks and comments."""
    return _COMMENT.sub("", _FENCE.sub("", text))


def slugs_of(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    counts: Counter[str] = Counter()
    found = set()
    for _, title in _HEADING.findall(prose_of(text)):
        plain = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        found.add(f"{plain}-{counts[plain]}" if counts[plain] else plain)
        counts[plain] += 1
    return found


def paragraphs_of(text: str) -> Iterator[str]:
    """Every paragraph and every item of a list; no table, heading or code block."""
    for block in re.split(r"\n\s*\n", prose_of(text)):
        lines = [line for line in block.splitlines() if not line.lstrip().startswith(("|", "#"))]
        yield from _ITEM.split("\n".join(lines))


def words_of(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def walk_of(text: str, heading: str) -> list[tuple[str, str]]:
    """The steps below a heading: (file, function)."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section is not None, heading
    return [(path, function) for path, function in _STEP.findall(section[1])]


def defined_in(path: Path) -> set[str]:
    """Functions, classes and their methods."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def names_in(path: Path) -> set[str]:
    """What can be imported from a module."""
    found = defined_in(path)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def classes_of(packages: tuple[str, ...]) -> dict[str, set[str]]:
    """Each class or type at the top of a module, with the methods and fields of its class body."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in (path for package in packages for path in modules_of(package).values()):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] |= members_of(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and not target.id.isupper():
                        found[target.id] |= set()
    return dict(found)


def members_of(node: ast.ClassDef) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    named = {each.name for each in node.body if isinstance(each, functions)}
    fields = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
    return named | {field.id for field in fields if isinstance(field, ast.Name)}


def clients() -> Iterator[tuple[str, str]]:
    """(who is asked, method) of every public method of every typed client."""
    for path in sorted((ROOT / "serving").glob("*/client.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Client"):
                asked = ASKED[node.name.removesuffix("Client")]
                yield from ((asked, name) for name in members_of(node) if name[0] != "_")


def code_of(text: str) -> list[str]:
    """What stands in backticks."""
    return _CODE.findall(prose_of(text))


@pytest.fixture(scope="module")
def architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def classes() -> dict[str, set[str]]:
    return classes_of(PACKAGES)


# -- the reading of Markdown, on a page whose outcome is known


def test_a_page_is_read_as_github_reads_it() -> None:
    blocks = [
        "# A `b`: c!",
        "one two\nthree",
        "- four\n  five\n- six",
        "```sh\n# no heading, seven\n```",
        "| eight | nine |\n|---|---|",
        "<!-- ten -->",
        "# A b c",
    ]
    page = "\n\n".join(blocks)
    assert slugs_of(page) == {"a-b-c", "a-b-c-1"}
    assert [words_of(each) for each in paragraphs_of(page) if each.strip()] == [3, 2, 1]


def test_a_path_is_told_from_the_words_around_it() -> None:
    text = "see `serving/app.py`, HOME/registry/log, (docs/*.md) and tests/e2e."
    assert _PATH.findall(text) == ["serving/app.py", "docs/*.md", "tests/e2e."]


# -- what is named exists


@each(PAGES, TOP, BESIDE)
def test_every_path_that_is_named_exists(page: Path) -> None:
    named = {path.rstrip("./") for path in _PATH.findall(page.read_text())}
    assert [path for path in sorted(named) if not list(ROOT.glob(path))] == []


@each(PAGES, TOP, BESIDE)
def test_every_file_that_is_named_without_its_folder_exists(page: Path) -> None:
    known = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
    named = {code for code in code_of(page.read_text()) if _FILE.fullmatch(code)}
    assert named - known == set()


@each(PAGES, TOP, BESIDE)
def test_every_module_that_is_named_exists_and_has_what_is_named(page: Path) -> None:
    modules = {name: path for package in PACKAGES for name, path in modules_of(package).items()}
    for name in (code for code in code_of(page.read_text()) if _DOTTED.fullmatch(code)):
        module = max((known for known in modules if f"{name}.".startswith(f"{known}.")), key=len)
        rest = name[len(module) + 1 :].partition(".")[0]
        assert not rest or rest in names_in(modules[module]), name


@each(PAGES, TOP, BESIDE)
def test_every_class_that_is_named_exists_and_has_the_method_that_is_named(
    page: Path, classes: dict[str, set[str]]
) -> None:
    named = {code for code in code_of(page.read_text()) if _CLASS.fullmatch(code)}
    for name, _, member in (code.partition(".") for code in sorted(named - FOREIGN)):
        assert name in classes, name
        assert not member or member in classes[name], f"{name} has no {member}"


@each(PAGES, TOP, BESIDE)
def test_every_link_leads_to_a_file_and_its_anchor_to_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        found = page if not target else page.parent / target
        assert found.exists(), link
        assert not anchor or anchor in slugs_of(found.read_text()), link


# -- how long a sentence's reader has to hold on


@each(PAGES, [ROOT / "README.md"])
def test_no_paragraph_is_long(page: Path) -> None:
    long = [each for each in paragraphs_of(page.read_text()) if words_of(each) > MOST_WORDS]
    assert [f"{words_of(each)} words: {' '.join(each.split())[:80]}" for each in long] == []


# -- the architecture


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_on_the_map(architecture: str, package: str) -> None:
    rooms = {*arrows_of(package), *arrows_of(package, nested=True)}
    named = set(code_of(architecture))
    places = (f"{package}/{room}" for room in sorted(rooms))
    assert [place for place in places if not named & {f"{place}/", f"{place}.py"}] == []


def test_the_table_of_who_asks_whom_has_every_method_of_the_typed_clients(
    architecture: str,
) -> None:
    table = re.search(
        r"^\| who \| asks \| for \|\n(.*?)\n\n", architecture, re.DOTALL | re.MULTILINE
    )
    assert table is not None
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[1].splitlines()[1:]]
    named = {
        (asked, method)
        for _, whom, what in rows
        for asked in whom.split(", ")
        for method in code_of(what)
        if asked in ASKED.values() and method.isidentifier()
    }
    expected = set(clients())
    assert len(expected) > 30
    assert named == expected


def test_the_rooms_of_serving_import_downwards_as_they_are_drawn(architecture: str) -> None:
    drawing = re.search(
        r"^### `serving/`\n.*?```\n(.*?)```", architecture, re.DOTALL | re.MULTILINE
    )
    assert drawing is not None
    level = {
        room: number for number, line in enumerate(drawing[1].splitlines()) for room in line.split()
    }
    arrows = arrows_of("serving")
    assert set(arrows) - set(level) == {"inference_protocol", "loadgen"}
    upwards = [
        (room, other)
        for room in level
        for other in arrows[room] & set(level)
        if level[other] <= level[room]
    ]
    assert upwards == []


@pytest.mark.parametrize("heading", ["The life of a forget", "The life of a prediction"])
def test_a_walk_is_short_and_each_of_its_steps_is_in_the_code(
    architecture: str, heading: str
) -> None:
    walk = walk_of(architecture, heading)
    assert 1 < len(walk) <= LONGEST_WALK
    assert len({path for path, _ in walk}) == len(walk)
    for path, function in walk:
        assert function in defined_in(ROOT / path), f"{path} has no {function}"


def test_the_walk_of_a_forget_goes_from_the_command_line_to_a_replica(architecture: str) -> None:
    files = [path for path, _ in walk_of(architecture, "The life of a forget")]
    assert files[0].startswith("serving/cli/")
    assert files[-1].startswith("serving/replica/")


# -- decisions and words


def test_decisions_are_numbered_without_a_gap_and_stand_in_the_index() -> None:
    numbers = [int(page.name[:4]) for page in DECISIONS]
    assert numbers == list(range(1, len(DECISIONS) + 1))
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    titles = [page.read_text().splitlines()[0].removeprefix("# ") for page in DECISIONS]
    rows = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| (.+?) \|", index, re.MULTILINE)
    assert rows == [
        (page.name[:4], page.name, title.partition(". ")[2])
        for page, title in zip(DECISIONS, titles, strict=True)
    ]
    assert [title.partition(". ")[0] for title in titles] == [str(number) for number in numbers]


@each(DECISIONS)
def test_a_decision_says_why_and_what_it_costs_in_few_words(page: Path) -> None:
    text = page.read_text()
    assert [title for marks, title in _HEADING.findall(text) if marks == "##"] == [
        "Context",
        "Decision",
        "Consequences",
    ]
    assert words_of(text) <= MOST_WORDS_OF_A_DECISION


def test_the_glossary_has_one_entry_for_a_word_in_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE)
    plain = [term.lower() for term in terms]
    assert len(plain) > 30
    assert plain == sorted(set(plain))
