"""A publish survives SIGKILL and a power cut after any system call."""

import random
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from registry.fold.state import State
from registry.log.adapters import adapter_files
from registry.log.ledger import utc_now
from registry.signing.keys import init_keys
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.collection import collect
from registry.upkeep.verification import verify
from tests.integration.registry.disk import Disk
from tests.integration.registry.erasure import Operator

ROOT = Path(__file__).parents[3]
ERASURE = "tests.integration.registry.erasure"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys")
    return tmp_path / "keys"


def check_readable(registry: Path, keys: Path) -> State:
    """Check that everything verifies, every served adapter is whole, and writing still works."""
    operator = Operator(registry, keys)
    found = verify(operator.store, operator.trust)
    assert found.problems == ()
    state = operator.ledger.refresh()
    for adapter in state.adapters:
        adapter_files(operator.ledger, adapter)
    for subject in state.erasing:
        SubjectMap(operator.store).class_of(subject)
    operator.forget("a class after the crash")
    later = utc_now() + timedelta(days=2)
    collect(operator.store, operator.ledger, now=later)
    found = verify(operator.store, operator.trust)
    assert found.problems == found.orphans == ()
    assert not [path for path in registry.rglob(".tmp-*")]
    return state


def test_a_publish_killed_before_any_system_call_leaves_a_readable_registry(
    tmp_path: Path, keys: Path
) -> None:
    top = tmp_path / "cuts"
    command = [sys.executable, "-m", ERASURE, str(top), str(keys)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    cuts = len(list(top.iterdir()))
    assert cuts > 60
    for cut in range(cuts):
        said = (top / str(cut) / "acknowledged").read_text().count("\n")
        state = check_readable(top / str(cut) / "registry", keys)
        assert said <= state.seq <= said + 1
    assert (said, state.seq) == (4, 4)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_power_cut_after_any_system_call_loses_nothing_acknowledged(
    tmp_path: Path, keys: Path, kept: float
) -> None:
    top = tmp_path / "disk"
    top.mkdir()
    disk = Disk(top)
    acknowledged = [0]  # acknowledged[n]: how many calls were made when record n was acknowledged
    with disk.recording():
        operator = Operator(top / "registry", keys)
        operator.erase("alice", lambda: acknowledged.append(len(disk.calls)))
        operator.ledger.put_blob(b"an orphan")
        collect(operator.store, operator.ledger, now=utc_now() + timedelta(days=2))
    assert len(disk.calls) > 80

    rng = random.Random(3)
    for cut in range(len(disk.calls) + 1):
        left = tmp_path / f"after-{cut}"
        disk.after_power_cut(cut, left, kept=kept, rng=rng)
        state = check_readable(left / "registry", keys)
        said = max(record for record, calls in enumerate(acknowledged) if calls <= cut)
        assert state.seq >= said, f"record {state.seq + 1} was acknowledged and lost"
        shutil.rmtree(left)


def test_the_disk_would_show_a_store_that_forgets_to_sync(tmp_path: Path) -> None:
    """Tests the imitated disk: without syncs, an object is lost or incomplete."""
    top = tmp_path / "disk"
    top.mkdir()
    disk = Disk(top)
    with disk.recording():
        DirectoryStore(top / "registry").create("log/1", b"data")
    whole = disk.calls
    assert [call.name for call in whole if call.name != "fsync"] == [
        "mkdir",
        "mkdir",
        "create",
        "write",
        "link",
        "unlink",
    ]
    for skipped, call in enumerate(whole):
        if call.name != "fsync" or call.paths == (".",):
            continue
        disk.calls = [*whole[:skipped], *whole[skipped + 1 :]]
        left = tmp_path / f"without-{skipped}"
        disk.after_power_cut(len(disk.calls), left, kept=0.0, rng=random.Random(0))
        path = left / "registry" / "log" / "1"
        assert not path.exists() or path.read_bytes() != b"data"
