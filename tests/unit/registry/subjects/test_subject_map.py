"""The subject map: once its entry is deleted, an id says nothing about its class."""

import hashlib
import hmac
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from registry.errors import FormatError, IntegrityError, NotFoundError
from registry.publish.jobs import request_forget
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import CLAIM_PREFIX, SubjectMap
from tests.unit.registry.registry_acts import BACKBONE, Acts

CLASSES = ["7", "alice", "Zoë Ångström/../x", "cat\n" * 100]


@pytest.fixture
def subjects(store: DirectoryStore) -> SubjectMap:
    return SubjectMap(store)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_one_id_and_an_id_one_class(subjects: SubjectMap, name: str) -> None:
    subject = subjects.assign(name)
    assert subjects.assign(name) == subjects.find(name) == subject
    assert subjects.class_of(subject) == name


def test_an_id_is_the_start_of_an_hmac_under_its_own_key(
    subjects: SubjectMap, store: DirectoryStore
) -> None:
    subject = subjects.assign("alice")
    entry = json.loads(store.read(f"subjects/{subject}.json"))
    assert entry["class"] == "alice"
    mac = hmac.new(bytes.fromhex(entry["key"]), b"alice", hashlib.sha256)
    assert subject == mac.hexdigest()[:32]


def test_all_gives_every_assigned_class(subjects: SubjectMap) -> None:
    assigned = {subjects.assign(name): name for name in CLASSES}
    assert subjects.all() == assigned


def test_an_unknown_class_and_an_unknown_id_are_not_found(subjects: SubjectMap) -> None:
    assert subjects.find("alice") is None
    with pytest.raises(NotFoundError, match="not in the map"):
        subjects.class_of("0" * 32)
    with pytest.raises(NotFoundError, match="not in the map"):
        subjects.delete("0" * 32)


@pytest.mark.parametrize("name", ["", "x" * 1001])
def test_an_impossible_class_name_is_refused(subjects: SubjectMap, name: str) -> None:
    with pytest.raises(ValueError, match="1 to 1000 characters"):
        subjects.assign(name)


def test_after_deletion_nothing_leads_from_the_id_to_the_class(
    subjects: SubjectMap, store: DirectoryStore
) -> None:
    subject = subjects.assign("alice")
    subjects.delete(subject)
    assert store.list("") == []
    with pytest.raises(NotFoundError):
        subjects.class_of(subject)
    assert subjects.assign("alice") != subject


def test_a_deletion_cut_off_by_a_crash_is_completed(
    subjects: SubjectMap, store: DirectoryStore
) -> None:
    subject = subjects.assign("alice")
    store.delete(store.list(CLAIM_PREFIX)[0])  # the state that the crash left
    assert subjects.find("alice") is None
    subjects.delete(subject)
    assert store.list("") == []


def test_an_entry_without_a_claim_stands_for_nothing(
    subjects: SubjectMap, store: DirectoryStore
) -> None:
    loser = subjects.assign("alice")
    store.delete(store.list(CLAIM_PREFIX)[0])
    winner = subjects.assign("alice")
    assert subjects.all() == {winner: "alice"}
    subjects.delete(loser)
    assert subjects.find("alice") == winner


def test_a_damaged_map_is_noticed(subjects: SubjectMap, store: DirectoryStore) -> None:
    alice, bob = subjects.assign("alice"), subjects.assign("bob")
    path = store.root / "subjects" / f"{alice}.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"alice", b"alicf"))
    with pytest.raises(IntegrityError, match="another subject id"):
        subjects.class_of(alice)
    path.write_bytes(good[:-1])
    with pytest.raises(FormatError, match=alice):
        subjects.find("alice")
    path.unlink()
    with pytest.raises(IntegrityError, match="whose entry is missing"):
        subjects.find("alice")
    path.write_bytes(good)

    claims = [store.root / key for key in store.list(CLAIM_PREFIX)]
    first, second = (claim.read_bytes() for claim in claims)
    claims[0].write_bytes(second)
    claims[1].write_bytes(first)
    with pytest.raises(IntegrityError, match="stands for another class"):
        subjects.find("bob")
    assert {alice, bob} == set(subjects.all())


def test_no_class_name_gets_into_the_log(
    acts: Acts, subjects: SubjectMap, store: DirectoryStore
) -> None:
    subject = subjects.assign("alice")
    request_forget(
        acts.ledger,
        acts.signers["operator"],
        subjects=[subject],
        backbone=BACKBONE,
        actor="ops",
        reason="Art. 17",
        request_id="r-1",
    )
    (entry,) = acts.ledger.records()
    assert "alice" not in str(entry)
    assert subject in str(entry)


def assign_all(root: Path, results: Connection) -> None:
    subjects = SubjectMap(DirectoryStore(root))
    results.send("ready")
    results.recv()
    results.send([subjects.assign(f"class {number}") for number in range(20)])


def test_processes_that_assign_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=assign_all, args=(tmp_path, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")
    first, second = (pipe.recv() for pipe in pipes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert first == second
    assert set(SubjectMap(DirectoryStore(tmp_path)).all()) == set(first)
