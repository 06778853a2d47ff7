"""Key rotation: both keys are valid for a while, old signatures stay valid, crashes do no harm."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from registry.errors import TrustError
from registry.log.ledger import Ledger
from registry.publish.declarations import write_note
from registry.signing.keys import (
    ROLES,
    TRUST_FILE,
    Role,
    Signer,
    Trust,
    create_private_key,
    init_keys,
)
from registry.signing.rotation import rotate_key
from registry.store.directory import DirectoryStore
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import NOON, Acts

DAY = timedelta(days=1)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys")
    return tmp_path / "keys"


def key_of(keys: Path, role: Role) -> Signer:
    return Signer.load(keys / f"{role}.pem")


def trusted(keys: Path) -> Trust:
    return Trust.load(keys / TRUST_FILE)


@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_gives_one_role_a_new_key_and_retires_the_old(keys: Path, role: Role) -> None:
    before, old = trusted(keys), key_of(keys, role)
    done = rotate_key(keys, role, now=NOON, overlap=DAY)
    new, after = key_of(keys, role), trusted(keys)
    assert (done.role, done.old, done.new, done.not_after) == (
        role, old.key_id, new.key_id, NOON + DAY,
    )  # fmt: skip
    assert after.keys[old.key_id].not_after == NOON + DAY
    assert (after.keys[new.key_id].roles, after.keys[new.key_id].not_after) == ({role}, None)
    others = before.keys.keys() - {old.key_id}
    assert all(after.keys[id].roles == before.keys[id].roles for id in others)
    assert all(after.keys[id].not_after is None for id in others)
    assert (keys / f"{role}.pem").stat().st_mode & 0o777 == 0o600
    expected = {TRUST_FILE, f".{TRUST_FILE}.lock", *(f"{each}.pem" for each in ROLES)}
    assert {path.name for path in keys.iterdir()} == expected


def test_both_keys_are_good_in_the_overlap_and_one_after_it(keys: Path) -> None:
    old = key_of(keys, "operator")
    rotate_key(keys, "operator", now=NOON, overlap=DAY)
    new, trust = key_of(keys, "operator"), trusted(keys)
    for signer, at, good in (
        (old, NOON, True),
        (new, NOON, True),
        (old, NOON + DAY, True),
        (old, NOON + DAY * 1.01, False),
        (new, NOON + DAY * 99, True),
    ):
        signature = signer.sign(b"payload")
        if good:
            trust.verify(b"payload", [signature], role="operator", at=at)
        else:
            with pytest.raises(TrustError, match="retired"):
                trust.verify(b"payload", [signature], role="operator", at=at)


def test_a_log_signed_by_old_and_new_keys_verifies(keys: Path, store: DirectoryStore) -> None:
    for turn in range(3):
        signers = {role: key_of(keys, role) for role in ROLES}
        acts = Acts(Ledger(store, trusted(keys)), signers, requests=turn * 100)
        acts.ledger.refresh()
        acts.erase(turn)
        for role in ROLES:
            rotate_key(keys, role, now=acts.state.releases[1].at or NOON, overlap=DAY)
    assert len(trusted(keys).keys) == 12
    found = verify(store, trusted(keys))
    assert (found.problems, found.seq) == ((), 24)


def test_a_running_reader_knows_the_new_key_without_a_restart(
    keys: Path, store: DirectoryStore
) -> None:
    reader = Ledger(store, trusted(keys))
    reader.refresh()
    rotate_key(keys, "operator", now=NOON, overlap=DAY)
    writer = Ledger(store, trusted(keys))
    origin = {"actor": "ops", "reason": "", "request_id": "r"}
    write_note(writer, key_of(keys, "operator"), text="new key", **origin)
    assert reader.refresh().seq == 1


def test_a_running_writer_can_not_sign_with_a_key_retired_since(
    keys: Path, store: DirectoryStore
) -> None:
    """Its record would stop every reader that has the newer trust file."""
    writer, old = Ledger(store, trusted(keys)), key_of(keys, "operator")
    origin = {"actor": "ops", "reason": "", "request_id": "r"}
    write_note(writer, old, text="before", **origin)
    rotate_key(keys, "operator", now=NOON - 400 * DAY, overlap=DAY)
    with pytest.raises(TrustError, match="retired"):
        write_note(writer, old, text="after", **origin)
    assert writer.state.seq == 1


def test_a_trust_file_that_vanished_or_broke_stops_a_running_reader(
    keys: Path, store: DirectoryStore
) -> None:
    ledger = Ledger(store, trusted(keys))
    ledger.refresh()
    whole = (keys / TRUST_FILE).read_bytes()
    (keys / TRUST_FILE).unlink()
    with pytest.raises(TrustError, match="can't be read"):
        ledger.refresh()
    (keys / TRUST_FILE).write_bytes(whole)
    assert ledger.refresh().seq == 0


@pytest.mark.parametrize("step", ["new key made", "trust file replaced"])
def test_a_rotation_that_was_cut_off_is_finished_by_the_next_call(
    keys: Path, tmp_path: Path, step: str
) -> None:
    old = key_of(keys, "eraser")
    if step == "new key made":
        create_private_key(keys / "eraser.next.pem")
    else:
        shutil.copytree(keys, tmp_path / "done")
        rotate_key(tmp_path / "done", "eraser", now=NOON, overlap=DAY)
        shutil.copy(tmp_path / "done" / TRUST_FILE, keys)
        os.rename(tmp_path / "done" / "eraser.pem", keys / "eraser.next.pem")
    expected = Signer.load(keys / "eraser.next.pem").key_id
    done = rotate_key(keys, "eraser", now=NOON, overlap=DAY)
    assert (done.old, done.new, done.not_after) == (old.key_id, expected, NOON + DAY)
    assert key_of(keys, "eraser").key_id == expected
    assert len(trusted(keys).keys) == len(ROLES) + 1
    assert not (keys / "eraser.next.pem").exists()


def test_a_key_that_the_trust_file_gives_more_than_its_role_is_left_alone(keys: Path) -> None:
    path = keys / TRUST_FILE
    entries = json.loads(path.read_bytes())
    operator = key_of(keys, "operator").key_id
    entries[operator]["roles"] = ["eraser", "operator"]
    path.write_text(json.dumps(entries))
    with pytest.raises(TrustError, match="has the roles eraser, operator"):
        rotate_key(keys, "operator", now=NOON)
    del entries[operator]
    path.write_text(json.dumps(entries))
    with pytest.raises(TrustError, match="isn't in it"):
        rotate_key(keys, "operator", now=NOON)
    assert key_of(keys, "operator").key_id == operator


def test_a_rotation_without_keys_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="keys can't be rotated"):
        rotate_key(tmp_path / "no", "operator", now=NOON)
    with pytest.raises(TrustError, match="trust file can't be read"):
        rotate_key(tmp_path, "operator", now=NOON)
