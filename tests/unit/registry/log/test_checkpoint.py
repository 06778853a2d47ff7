"""A checkpoint leads to the same state as the log, or is ignored."""

import ast
import json
import re
import shutil
import sys
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest

from registry.errors import FormatError, IntegrityError
from registry.fold.state import State
from registry.fold.state_json import state_from_json, state_to_json
from registry.log import checkpoint
from registry.log.ledger import Ledger, log_key
from registry.records.bodies import Refused
from registry.records.declarations import LegalHold, Restored, Sealed, Suspended, Tombstone
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from tests.unit.registry.histories import (
    DONE,
    FOLDED,
    OTHER_BACKBONE,
    PUBLISHED,
    REQUESTED,
    S1,
    SECOND,
    SERVED,
    then,
)
from tests.unit.registry.registry_acts import NOON, Acts

REFUSED = then(REQUESTED, Refused("job-1", "gates", "H fell", OTHER_BACKBONE))
DECLARED = then(DONE, LegalHold((S1,), "placed"), LegalHold((S1,), "lifted"))
DECLARED = then(DECLARED, Tombstone((S1,), ("images", "prototypes")), Suspended("suspended"))
STATES = {
    "empty": State(),
    "requested": REQUESTED,
    "refused": REFUSED,
    "published": PUBLISHED,
    "second": SECOND,
    "held": then(DONE, LegalHold((S1,), "placed")),
    "declared": DECLARED,
    "restored": then(DECLARED, Restored((S1,))),
    "compacted": FOLDED,
    "compaction served": SERVED,
    "sealed": then(DONE, Sealed(2, OTHER_BACKBONE)),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_reads_back_from_json_as_it_was(name: str) -> None:
    state = STATES[name]
    again = state_from_json(json.loads(json.dumps(state_to_json(state))))
    assert again == state
    for field in fields(State):
        assert type(getattr(again, field.name)) is type(getattr(state, field.name))


def test_releases_share_their_guards_and_stacks_after_reading(acts: Acts) -> None:
    acts.erase(1)
    for to in (1, 2, 1, 2):
        acts.serve(acts.roll_back(to).number)
    again = state_from_json(json.loads(json.dumps(state_to_json(acts.state))))
    assert again == acts.state
    assert len({id(release.guard) for release in again.releases.values()}) == 2


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def saved(acts: Acts, store: DirectoryStore, trust: Trust, directory: Path) -> Path:
    """The file of a checkpoint of eight records."""
    acts.erase(1)
    checkpoint.save(directory, store, acts.state, trust)
    (path,) = directory.iterdir()
    return path


@pytest.mark.usefixtures("saved")
def test_a_reader_goes_on_from_the_checkpoint(
    acts: Acts, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    acts.erase(2)
    known = checkpoint.load(directory, store, trust)
    assert known is not None
    assert known.seq == 8
    seen: list[int] = []
    ledger = Ledger(store, trust, known=known)
    assert ledger.refresh(each=lambda entry: seen.append(entry.record.seq)) == acts.state
    assert seen == list(range(9, 17))
    assert checkpoint.open_ledger(store, trust, directory=directory).state == acts.state
    assert [entry.record.seq for entry in ledger.records()] == list(range(1, 17))


@pytest.mark.usefixtures("saved")
def test_a_log_that_was_cut_back_is_noticed(
    store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    store.delete(log_key(8))
    with pytest.raises(IntegrityError, match="an older copy or another log") as caught:
        checkpoint.open_ledger(store, trust, directory=directory)
    assert caught.value.check == "replay"


@pytest.mark.usefixtures("saved")
def test_another_last_record_is_noticed(
    acts: Acts, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    store.delete(log_key(8))
    other = Acts(Ledger(store, trust), acts.signers, requests=100)
    other.ledger.refresh()
    other.note("this was not here")
    with pytest.raises(IntegrityError, match="replay"):
        checkpoint.open_ledger(store, trust, directory=directory)


@pytest.mark.usefixtures("saved")
def test_damage_before_the_checkpoint_is_left_to_verify_and_after_it_is_found(
    acts: Acts, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    acts.note("nine")
    (store.root / log_key(3)).write_bytes(b"x")
    assert checkpoint.open_ledger(store, trust, directory=directory).state.seq == 9
    (store.root / log_key(9)).write_bytes(b"x")
    with pytest.raises(FormatError, match="envelope"):
        checkpoint.open_ledger(store, trust, directory=directory)


def test_a_checkpoint_is_for_one_trust_file(
    saved: Path, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    key_id, key = next(iter(trust.keys.items()))
    for changed in (
        replace(key, not_after=NOON + timedelta(days=1)),
        replace(key, roles=frozenset({"eraser", "operator"})),
    ):
        other = Trust({**trust.keys, key_id: changed})
        assert other.fingerprint != trust.fingerprint
        assert checkpoint.load(directory, store, other) is None
    assert checkpoint.load(directory, store, trust) is not None


def test_a_checkpoint_of_another_log_is_not_used(
    saved: Path, acts: Acts, trust: Trust, directory: Path, tmp_path: Path
) -> None:
    other = Acts(Ledger(DirectoryStore(tmp_path / "other"), trust), acts.signers)
    other.forget(5)
    store = DirectoryStore(tmp_path / "other")
    assert checkpoint.load(directory, store, trust) is None
    assert checkpoint.open_ledger(store, trust, directory=directory).state.seq == 1


def test_every_damaged_checkpoint_is_left_alone(
    saved: Path, acts: Acts, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    data = saved.read_bytes()
    for position in range(0, len(data), 101):
        saved.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert checkpoint.load(directory, store, trust) is None
    for wrong in (b"", b"\n", data[:-1], b"{}\n{}", b"[1]\n[]", data[: len(data) // 2]):
        saved.write_bytes(wrong)
        assert checkpoint.load(directory, store, trust) is None
    assert checkpoint.open_ledger(store, trust, directory=directory).state == acts.state


def test_a_checkpoint_that_others_can_write_is_not_used(
    saved: Path, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    assert saved.stat().st_mode & 0o777 == 0o600
    saved.chmod(0o620)
    assert checkpoint.load(directory, store, trust) is None


def test_a_new_checkpoint_is_made_when_it_is_worth_it(
    acts: Acts, store: DirectoryStore, trust: Trust, directory: Path
) -> None:
    assert checkpoint.open_ledger(store, trust, directory=directory).state.seq == 0
    acts.erase(1)
    checkpoint.open_ledger(store, trust, directory=directory)
    assert not directory.exists()
    while acts.state.seq < checkpoint.WORTH_SAVING:
        acts.note("more")
    checkpoint.open_ledger(store, trust, directory=directory)
    assert checkpoint.load(directory, store, trust) == acts.state
    acts.note("one more")
    checkpoint.open_ledger(store, trust, directory=directory)
    known = checkpoint.load(directory, store, trust)
    assert known is not None
    assert known.seq == checkpoint.WORTH_SAVING


def test_a_reader_without_a_place_for_checkpoints_reads_all_the_same(
    acts: Acts, store: DirectoryStore, trust: Trust, tmp_path: Path
) -> None:
    while acts.state.seq < checkpoint.WORTH_SAVING:
        acts.note("more")
    blocked = tmp_path / "a file"
    blocked.write_bytes(b"")
    assert checkpoint.open_ledger(store, trust, directory=blocked).state == acts.state
    shutil.rmtree(store.root)
    assert checkpoint.open_ledger(store, trust, directory=blocked).state == State()


def test_a_change_in_any_module_that_the_fold_imports_ends_a_checkpoints_use() -> None:
    imported: set[str] = set()
    left = ["fold.rules", "fold.state_json", "records.record"]
    while left:
        name = left.pop()
        if name not in imported:
            imported.add(name)
            tree = ast.parse(Path(str(sys.modules[f"registry.{name}"].__file__)).read_text())
            froms = [
                node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            ]
            left += [m.removeprefix("registry.") for m in froms if m.startswith("registry.")]
    rooms = {name.partition(".")[0] for name in imported}
    decides_nothing = {"errors", "store"}  # how keys are written
    assert rooms - decides_nothing == {
        re.split(r"[./]", pattern)[0] for pattern in checkpoint._DECIDING
    }
