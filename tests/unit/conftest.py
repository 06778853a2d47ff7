from pathlib import Path

import pytest

from registry.keys import ROLES, TRUST_FILE, Role, Signer, Trust, init_keys
from registry.ledger import Ledger
from registry.store import DirectoryStore
from tests.unit.registry.registry_acts import Acts


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


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def ledger(store: DirectoryStore, trust: Trust) -> Ledger:
    return Ledger(store, trust)


@pytest.fixture
def acts(ledger: Ledger, signers: dict[Role, Signer]) -> Acts:
    return Acts(ledger, signers)
