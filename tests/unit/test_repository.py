"""What new contributors read and run is right: links exist, and files agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

PYTHON = "Programming Language :: Python :: "
FORMS = ("bug.yml", "feature.yml")


@pytest.fixture
def pyproject(project_root: Path) -> dict[str, Any]:
    return tomllib.loads((project_root / "pyproject.toml").read_text())


@pytest.fixture
def job(project_root: Path) -> dict[str, Any]:
    workflow = yaml.safe_load((project_root / ".github" / "workflows" / "ci.yml").read_text())
    (only,) = workflow["jobs"].values()
    return dict(only)


def test_the_workflow_runs_what_ci_runs_with_the_ray_of_the_matrix(job: dict[str, Any]) -> None:
    (step,) = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert step["env"]["RAY"] == "${{ matrix.ray }}"
    assert "${{ matrix.python }}" in job["container"]["image"]


def test_the_workflow_tests_the_pythons_that_the_project_names(
    job: dict[str, Any], pyproject: dict[str, Any]
) -> None:
    tested = job["strategy"]["matrix"]["python"]
    project = pyproject["project"]
    named = [c.removeprefix(PYTHON) for c in project["classifiers"] if c.startswith(PYTHON)]
    assert tested == named
    assert project["requires-python"] == f">={min(tested, key=Version)}"


def test_the_rays_that_are_allowed_begin_and_end_with_those_that_the_workflow_tests(
    job: dict[str, Any], pyproject: dict[str, Any], project_root: Path
) -> None:
    tested = {Version(release) for release in job["strategy"]["matrix"]["ray"]}
    (ray,) = [
        needed
        for needed in map(Requirement, pyproject["project"]["dependencies"])
        if needed.name == "ray"
    ]
    bounds = {bound.operator: Version(bound.version) for bound in ray.specifier}
    newest = max(tested)
    # A patch release of the newest minor one is allowed untested, the next minor one is not.
    assert bounds == {">=": min(tested), "<": Version(f"{newest.major}.{newest.minor + 1}")}
    pins = re.findall(r"^ray==(.+)$", (project_root / "constraints.txt").read_text(), re.MULTILINE)
    assert Version(*pins) == newest


def test_the_licence_is_the_one_that_is_named(
    pyproject: dict[str, Any], project_root: Path
) -> None:
    assert pyproject["project"]["license"] == "Apache-2.0"
    (name,) = pyproject["project"]["license-files"]
    first, version = (project_root / name).read_text().split("\n", 3)[1:3]
    assert (first.strip(), version.strip()) == ("Apache License", "Version 2.0, January 2004")


def test_the_packages_that_are_type_checked_ship_their_types(
    pyproject: dict[str, Any], project_root: Path
) -> None:
    shipped = pyproject["tool"]["setuptools"]["package-data"]
    for package in pyproject["tool"]["mypy"]["packages"]:
        assert "py.typed" in shipped[package]
        assert (project_root / package / "py.typed").is_file()


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_has_what_github_asks_of_it(project_root: Path, name: str) -> None:
    form = yaml.safe_load((project_root / ".github" / "ISSUE_TEMPLATE" / name).read_text())
    assert form["name"]
    assert form["description"]
    labels = [part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown"]
    assert labels
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_relative_link_leads_to_a_file(project_root: Path, name: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (project_root / name).read_text())
    relative = [link for link in links if not link.startswith(("http://", "https://"))]
    assert relative
    assert [link for link in relative if not (project_root / link).exists()] == []
