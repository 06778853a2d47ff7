"""Archives: the same registry gives the same bytes, and an import stores only what it verified."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import CheckError, ConflictError, IntegrityError
from registry.log.ledger import Ledger, blob_key, log_key
from registry.signing.keys import Trust, init_keys
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.archive import export_archive, import_archive
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import Acts

Members = list[tuple[str, bytes]]


@pytest.fixture
def archive(acts: Acts, store: DirectoryStore) -> bytes:
    acts.erase(1)
    acts.forget(2)
    acts.train("job-2")
    acts.refuse("job-2")
    acts.ledger.put_blob(b"an orphan stays at home")
    SubjectMap(store).assign("alice")
    return exported(store, acts.ledger)


@pytest.fixture
def target(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "imported")


def exported(store: DirectoryStore, ledger: Ledger) -> bytes:
    file = io.BytesIO()
    export_archive(store, ledger, target=file)
    return file.getvalue()


def imported(archive: bytes, store: DirectoryStore, trust: Trust) -> None:
    import_archive(io.BytesIO(archive), store, trust=trust)


def members(archive: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar]
        return [(name, file.read()) for name, file in files if file is not None]


def packed(content: Members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_an_imported_registry_is_the_exported_one(
    acts: Acts, store: DirectoryStore, target: DirectoryStore, trust: Trust, archive: bytes
) -> None:
    state = import_archive(io.BytesIO(archive), target, trust=trust)
    assert state == acts.state == Ledger(target, trust).refresh()
    found = verify(target, trust)
    assert found.problems == found.orphans == found.strays == ()
    for key in target.list(""):
        assert target.read(key) == store.read(key)


def test_equal_registries_have_equal_archives(
    acts: Acts, store: DirectoryStore, target: DirectoryStore, trust: Trust, archive: bytes
) -> None:
    imported(archive, target, trust)
    assert exported(target, Ledger(target, trust)) == archive == exported(store, acts.ledger)


def test_an_archive_has_neither_the_subject_map_nor_orphans(archive: bytes) -> None:
    names = [name for name, _ in members(archive)]
    assert not any(name.startswith("subjects/") for name in names)
    assert len([name for name in names if name.startswith("blobs/")]) == 6
    assert b"alice" not in archive


def test_an_empty_registry_has_an_archive(
    ledger: Ledger, store: DirectoryStore, target: DirectoryStore, trust: Trust
) -> None:
    imported(exported(store, ledger), target, trust)
    assert Ledger(target, trust).refresh().seq == 0


def test_an_import_can_be_repeated_and_can_extend_an_earlier_copy(
    acts: Acts, store: DirectoryStore, target: DirectoryStore, trust: Trust, archive: bytes
) -> None:
    imported(archive, target, trust)
    imported(archive, target, trust)
    acts.note("later")
    imported(exported(store, acts.ledger), target, trust)
    assert Ledger(target, trust).refresh() == acts.state
    imported(archive, target, trust)
    assert Ledger(target, trust).refresh() == acts.state


def test_an_import_over_another_log_is_a_conflict(
    target: DirectoryStore, trust: Trust, archive: bytes, acts: Acts
) -> None:
    Acts(Ledger(target, trust), acts.signers).note("another log")
    with pytest.raises(ConflictError, match=f"{log_key(1)} exists with other content"):
        imported(archive, target, trust)


def test_an_import_needs_the_keys_that_signed(
    target: DirectoryStore, tmp_path: Path, archive: bytes
) -> None:
    init_keys(tmp_path / "other")
    with pytest.raises(CheckError, match="check: key"):
        imported(archive, target, Trust.load(tmp_path / "other" / "trust.json"))
    assert target.list("log/") == []


def without(name: str) -> Callable[[Members], Members]:
    return lambda content: [entry for entry in content if not entry[0].startswith(name)]


CHANGES: dict[str, Callable[[Members], Members]] = {
    "no manifest": lambda content: content[1:],
    "nothing": lambda content: [],
    "a blob less": lambda content: [content[0], *content[2:]],
    "no blobs": without("blobs/"),
    "no format": without("format.json"),
    "no records": without("log/"),
    "the last record less": lambda content: content[:-1],
    "the first record less": without(log_key(1)),
    "records out of order": lambda content: [*content[:-2], content[-1], content[-2]],
    "a record twice": lambda content: [*content, content[-1]],
    "a blob changed": lambda content: [content[0], (content[1][0], b"x"), *content[2:]],
    "a record changed": lambda content: [*content[:-1], (content[-1][0], content[-1][1][:-1])],
    "a file of another kind": lambda content: [content[0], ("readme", b"x"), *content[1:]],
    "a path out of the registry": lambda content: [content[0], ("../x", b"x"), *content[1:]],
    "an absolute path": lambda content: [content[0], ("/tmp/x", b"x"), *content[1:]],
    "a subject": lambda content: [content[0], ("subjects/a.json", b"{}"), *content[1:]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_archive_is_refused_and_nothing_wrong_is_stored(
    target: DirectoryStore, trust: Trust, archive: bytes, change: str
) -> None:
    changed = packed(CHANGES[change](members(archive)))
    with pytest.raises(CheckError):
        imported(changed, target, trust)
    assert verify(target, trust).problems == ()


def test_a_truncated_archive_is_refused(
    target: DirectoryStore, trust: Trust, archive: bytes
) -> None:
    whole = len(archive.rstrip(b"\0"))
    for size in [*range(0, whole, 2500), whole - 1]:
        with pytest.raises(CheckError):
            imported(archive[:size], target, trust)
    assert verify(target, trust).problems == ()


def test_a_damaged_archive_is_refused_or_is_no_different(
    tmp_path: Path, trust: Trust, archive: bytes
) -> None:
    """Damage to padding or unused header fields doesn't change what is imported."""
    refused = 0
    for position in range(0, len(archive), 2999):
        changed = bytearray(archive)
        changed[position] ^= 0x10
        target = DirectoryStore(tmp_path / str(position))
        try:
            imported(bytes(changed), target, trust)
        except CheckError:
            refused += 1
        else:
            assert members(bytes(changed)) == members(archive)
        assert verify(target, trust).problems == ()
    assert refused > 3


def test_a_link_in_an_archive_is_refused(
    target: DirectoryStore, trust: Trust, archive: bytes
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        name, data = members(archive)[0]
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(f"blobs/sha256/aa/{'a' * 64}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(CheckError, match="expected a plain file"):
        imported(file.getvalue(), target, trust)


def test_a_registry_with_a_missing_blob_is_not_exported(
    acts: Acts, store: DirectoryStore, archive: bytes
) -> None:
    entry = acts.state.adapters[acts.state.active_release.adapters[0]]
    key = blob_key(entry.files["adapter.bin"].digest)
    (store.root / key).write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=key):
        exported(store, acts.ledger)
