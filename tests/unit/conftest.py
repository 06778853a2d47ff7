from pathlib import Path

import pytest

from registry.log.ledger import Ledger
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import DirectoryStore
from tests.unit.registry.registry_acts import Acts


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def ledger(store: DirectoryStore, trust: Trust) -> Ledger:
    return Ledger(store, trust)


@pytest.fixture
def acts(ledger: Ledger, signers: dict[Role, Signer]) -> Acts:
    return Acts(ledger, signers)
