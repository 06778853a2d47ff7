"""The functions that record declarations: what each adds to the ledger, and what it does before."""

import os
import shutil
from pathlib import Path

import pytest

from registry.errors import ConflictError, FormatError, NotFoundError, TrustError
from registry.fold.state import State
from registry.log.ledger import Ledger
from registry.publish.declarations import record_deletion, restore_subjects
from registry.publish.jobs import request_forget
from registry.records.bodies import Note
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import BACKBONE, Acts, subject

SEALED_INTO = f"sha256:{'c' * 64}"


def never() -> None:
    raise AssertionError("this must not be deleted")


def test_a_class_is_restored_by_a_restore_and_a_rollback(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    state = acts.restore(2)
    assert state.erasing == {subject(1)}
    release = acts.serve(acts.roll_back(state.release_without(frozenset({subject(2)}))).number)
    assert (release.to, release.guard) == (3, {subject(1)})
    assert acts.state.subjects_erased_by_weights(release.number) == {subject(1)}
    assert acts.state.subjects_to_unmask == frozenset()


def test_a_mask_alone_is_taken_off_by_a_guard_release(acts: Acts) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    acts.restore(1)
    assert acts.serve(acts.publish("guard", job.id).number).guard == frozenset()


def test_a_restore_needs_a_reason(acts: Acts) -> None:
    acts.erase(1)
    with pytest.raises(FormatError, match="field reason: to end an erasure needs one"):
        restore_subjects(
            acts.ledger,
            acts.signers["operator"],
            subjects=[subject(1)],
            actor="ops",
            reason=" ",
            request_id="r",
        )
    assert acts.state.erasing == {subject(1)}


def test_a_restore_in_the_erasers_or_publishers_name_is_refused(acts: Acts) -> None:
    acts.erase(1)
    operator = acts.signers["operator"]
    roles: tuple[Role, ...] = ("eraser", "publisher")
    for role in roles:
        acts.signers = {**acts.signers, "operator": acts.signers[role]}
        with pytest.raises(TrustError, match="role operator must sign"):
            acts.restore(1)
    acts.signers = {**acts.signers, "operator": operator}
    assert acts.restore(1).erasing == frozenset()


def test_a_tombstone_is_written_after_the_deletion(acts: Acts) -> None:
    acts.erase(1)
    seen: list[int] = []
    state = acts.bury(1, objects=("images",), delete=lambda: seen.append(acts.state.seq))
    assert seen == [state.seq - 1]
    assert state.deleted == {subject(1): {"images"}}


def test_nothing_is_deleted_that_the_rules_keep(acts: Acts) -> None:
    acts.erase(1)
    with pytest.raises(ConflictError, match="replicas still need"):
        acts.bury(1, objects=("subject_map",), delete=never)
    acts.hold(1)
    with pytest.raises(ConflictError, match="under a legal hold"):
        acts.bury(1, objects=("images",), delete=never)
    with pytest.raises(ConflictError, match="no request names"):
        acts.bury(7, objects=("images",), delete=never)
    acts.hold(1, act="lifted")
    assert acts.bury(1, objects=("images",), delete=lambda: None).deleted


def test_a_failed_deletion_leaves_no_tombstone(acts: Acts) -> None:
    acts.erase(1)

    def fail() -> None:
        os.unlink("/nonexistent/image")

    with pytest.raises(FileNotFoundError):
        acts.bury(1, objects=("images",), delete=fail)
    assert acts.ledger.refresh().deleted == {}


def test_after_the_map_entry_is_gone_the_chain_still_verifies(
    ledger: Ledger, store: DirectoryStore, trust: Trust, signers: dict[Role, Signer]
) -> None:
    subjects = SubjectMap(store)
    alice = subjects.assign("alice")
    origin = {"actor": "ops", "reason": "Art. 17", "request_id": "r"}
    request_forget(ledger, signers["operator"], subjects=[alice], backbone=BACKBONE, **origin)
    restore_subjects(ledger, signers["operator"], subjects=[alice], **origin)
    record_deletion(
        ledger,
        signers["eraser"],
        subjects=[alice],
        objects=["subject_map"],
        delete=lambda: subjects.delete(alice),
        **origin,
    )
    with pytest.raises(NotFoundError):
        subjects.class_of(alice)
    assert verify(store, trust).problems == ()


def test_a_suspension_and_a_seal_are_in_the_state(acts: Acts) -> None:
    acts.erase(1)
    assert acts.suspend().suspended
    assert not acts.suspend("resumed").suspended
    state = acts.seal(2, SEALED_INTO)
    assert state.seal is not None
    assert state.seal.backbone == SEALED_INTO
    with pytest.raises(ConflictError, match="was sealed"):
        acts.forget(2)


def test_a_note_returns_its_record(acts: Acts) -> None:
    record = acts.note("keys rotated")
    assert (record.seq, record.body, record.actor) == (1, Note("keys rotated"), "ops")


# -- golden

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-declarations"


def test_a_registry_with_declarations_means_what_it_meant(tmp_path: Path) -> None:
    """As in `test_golden`, the registry was written once and must never be rewritten."""
    shutil.copytree(GOLDEN / "registry", tmp_path / "registry")
    store, trust = DirectoryStore(tmp_path / "registry"), Trust.load(GOLDEN / "trust.json")
    found = verify(store, trust)
    assert found.problems == found.orphans == found.strays == ()
    ledger = Ledger(store, trust)
    state: State = ledger.refresh()
    types = [entry.record.type for entry in ledger.records()]
    assert types[-9:] == [
        "legal_hold",
        "legal_hold",
        "suspended",
        "suspended",
        "restored",
        "tombstone",
        "sealed",
        "tombstone",
        "note",
    ]
    assert state.seal is not None
    assert state.seal.backbone == SEALED_INTO
    assert [(job.id, job.state) for job in state.jobs.values()] == [
        ("job-1", "done"),
        ("job-2", "restored"),
    ]
    assert [set(kinds) for kinds in state.deleted.values()] == [
        {"images", "prototypes"},
        {"subject_map"},
    ]
    assert SubjectMap(store).all() == {}
    assert (state.suspended, state.held) == (False, frozenset())
