"""Marks tests by their folder, and has the fixtures for homes, data sets and keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.signing.keys import ROLES, TRUST_FILE, Role, Signer, Trust, init_keys
from tests.disturbance import DISTURBED, disturb

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("unit", "integration", "e2e")
# Read here because the fixture `no_home_of_the_callers` removes it from the environment later.
CALLERS_HOME = os.environ.get("LETHE_HOME")


def pytest_configure() -> None:
    disturb()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture(autouse=True)
def no_home_of_the_callers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove LETHE_HOME, which overrides the `home` of a settings file. Only e2e tests keep it:
    they take their backbone from there."""
    if request.node.get_closest_marker("e2e") is None:
        monkeypatch.delenv("LETHE_HOME", raising=False)


@pytest.fixture(scope="session")
def digits_backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded default's backbone, under LETHE_HOME. If it isn't there, one test
    process trains it while others wait. With changed seeds or rounding it is trained elsewhere."""
    from serving.config.backbones import prepare_backbone
    from serving.config.sources import load_settings

    settings = load_settings(home=tmp_path_factory.mktemp("home") if DISTURBED else CALLERS_HOME)
    prepare_backbone(settings, lambda _: None)
    return settings.home_path / "backbones"


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets. Skips the test if there is none."""
    folder = Path(os.environ.get("LETHE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set LETHE_DATA")
    return folder


@pytest.fixture(scope="session")
def keys_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    init_keys(directory)
    return directory


@pytest.fixture(scope="session")
def signers(keys_directory: Path) -> dict[Role, Signer]:
    return {role: Signer.load(keys_directory / f"{role}.pem") for role in ROLES}


@pytest.fixture(scope="session")
def trust(keys_directory: Path) -> Trust:
    return Trust.load(keys_directory / TRUST_FILE)
