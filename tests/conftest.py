"""Folders are markers; real data sets come from LETHE_DATA and are skipped where absent."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from registry.signing.keys import ROLES, TRUST_FILE, Role, Signer, Trust, init_keys
from tests.disturbance import DISTURBED, disturb

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("unit", "integration", "e2e")
# Taken before any test may hide it from the settings.
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
    """LETHE_HOME goes before a settings file's `home`: the caller's would mislead a test. Only the
    servers of e2e keep their backbone there."""
    if request.node.get_closest_marker("e2e") is None:
        monkeypatch.delenv("LETHE_HOME", raising=False)


@pytest.fixture(scope="session")
def digits_backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded default's backbone: the demo's under LETHE_HOME, trained there if
    absent, by one test process while others wait. One that is disturbed is not left there."""
    from serving.config.backbones import prepare_backbone
    from serving.config.sources import load_settings

    settings = load_settings(home=tmp_path_factory.mktemp("home") if DISTURBED else CALLERS_HOME)
    settings.home_path.mkdir(parents=True, exist_ok=True)
    with (settings.home_path / ".training").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare_backbone(settings, lambda _: None)
    return settings.home_path / "backbones"


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets."""
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
