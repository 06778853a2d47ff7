"""Reading an adapter returns the files that its record names, or raises."""

import json

import pytest

from registry.errors import IntegrityError, NotFoundError
from registry.fold.state import AdapterEntry
from registry.log.adapters import adapter_files
from registry.log.ledger import blob_key
from registry.store.directory import DirectoryStore
from tests.unit.registry.registry_acts import Acts, subject


@pytest.fixture
def entry(acts: Acts) -> AdapterEntry:
    acts.forget(1)
    return acts.train("job-1")


def test_an_adapter_comes_back_as_it_was_recorded(acts: Acts, entry: AdapterEntry) -> None:
    assert adapter_files(acts.ledger, entry.id) == {
        "adapter.bin": b"job-1 on ()",
        "forget.json": json.dumps([subject(1)]).encode(),
    }


def test_an_unknown_adapter_is_not_found(acts: Acts) -> None:
    with pytest.raises(NotFoundError, match="defines the adapter"):
        adapter_files(acts.ledger, f"sha256:{'0' * 64}")


@pytest.mark.parametrize("name", ["adapter.bin", "forget.json"])
def test_a_missing_or_changed_file_is_named(
    acts: Acts, store: DirectoryStore, entry: AdapterEntry, name: str
) -> None:
    path = store.root / blob_key(entry.files[name].digest)
    good = path.read_bytes()
    for data, check in ((good[:-1], "size"), (good + b"x", "size"), (good.upper(), "sha256")):
        if data == good:
            data = bytes(len(good))
        path.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            adapter_files(acts.ledger, entry.id)
        assert (caught.value.check, store.root / caught.value.where) == (check, path)
    path.unlink()
    with pytest.raises(IntegrityError, match=f"missing; it is the file {name}") as caught:
        adapter_files(acts.ledger, entry.id)
    assert caught.value.check == "presence"
