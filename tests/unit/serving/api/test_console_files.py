"""The console's files: what a browser may do with them, and that they fit together."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.api.console.files import HEADERS, PAGE, File, read_files
from serving.api.routes import console, problems

INKS = ("ink", "dim", "accent", "bad", "warn")
GROUNDS = ("ground", "panel")


@pytest.fixture(scope="module")
def files() -> dict[str, File]:
    return read_files()


@pytest.fixture(scope="module")
def scripts(files: dict[str, File]) -> dict[str, str]:
    return {name: f.content.decode() for name, f in files.items() if name.endswith(".js")}


@pytest.fixture(scope="module")
def visitor() -> TestClient:
    app = FastAPI()
    problems.install(app)
    app.include_router(console.router)
    return TestClient(app)


class Tags(HTMLParser):
    """Collects the name and attributes of every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags(files: dict[str, File]) -> list[tuple[str, dict[str, str | None]]]:
    return Tags(files[PAGE].content.decode()).found


def test_every_file_is_served_with_its_type_and_the_policy(
    visitor: TestClient, files: dict[str, File]
) -> None:
    assert {name.rpartition(".")[2] for name in files} == {"html", "js", "css", "svg"}
    for name, file in files.items():
        answer = visitor.get(f"/console/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == file.type
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert visitor.get("/console").content == files[PAGE].content


def test_a_file_that_the_browser_has_is_not_sent_again(visitor: TestClient) -> None:
    tag = visitor.get("/console").headers["etag"]
    again = visitor.get("/console", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert visitor.get("/console", headers={"If-None-Match": '"old"'}).status_code == 200


@pytest.mark.parametrize("name", ["absent.js", "__init__.py", "files.py", "..%2fapp.py"])
def test_nothing_but_the_static_files_is_served(visitor: TestClient, name: str) -> None:
    assert visitor.get(f"/console/{name}").status_code == 404


def test_the_page_names_only_files_of_its_own_and_nothing_is_inline(
    files: dict[str, File], tags: list[tuple[str, dict[str, str | None]]]
) -> None:
    named = [a.get("src") or a.get("href") for tag, a in tags if tag in ("script", "link", "img")]
    assert named
    for reference in named:
        assert reference is not None
        assert reference.removeprefix("console/") in files
    for tag, attributes in tags:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_scripts_and_style_refer_to_nothing_outside(files: dict[str, File]) -> None:
    for name, file in files.items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|url\(|@import", text), name


def test_no_script_makes_markup_or_code_of_a_string(scripts: dict[str, str]) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|"
        r"new Function|setHTML|localStorage|document\.cookie"
    )
    assert scripts
    for name, text in scripts.items():
        assert not re.search(forbidden, text), name


def test_every_element_that_a_script_looks_for_is_on_the_page(
    scripts: dict[str, str], tags: list[tuple[str, dict[str, str | None]]]
) -> None:
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {name for text in scripts.values() for name in re.findall(r'\bat\("([^"]+)"\)', text)}
    assert len(wanted) > 40
    assert wanted <= set(ids)
    for _, attributes in tags:
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(reference) in {None, *ids}


def test_scripts_import_only_one_another_by_names_that_exist(
    files: dict[str, File], scripts: dict[str, str]
) -> None:
    for name, text in scripts.items():
        for names, module in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text):
            assert module in files, name
            for wanted in (each.strip() for each in names.split(",")):
                exported = rf"export (?:async )?(?:function|const|class) {wanted}\b"
                assert re.search(exported, scripts[module]), f"{name}: {wanted}"
                assert len(re.findall(rf"\b{wanted}\b", text)) > 1, f"{name}: {wanted} is unused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_ink_has_contrast_enough_on_every_ground(files: dict[str, File], scheme: str) -> None:
    light, dark = re.findall(r":root \{([^}]+)\}", files["console.css"].content.decode())
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))
    pairs = [(ink, ground) for ink in INKS for ground in GROUNDS] + [("on-accent", "accent")]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours, given as #rrggbb."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
