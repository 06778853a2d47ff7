"""Writers in real processes: racing for numbers, and killed at any moment."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from registry.bodies import Note
from registry.keys import Trust, init_keys
from registry.ledger import Ledger
from registry.store import TEMPORARY_PREFIX, DirectoryStore

WRITER = Path(__file__).with_name("ledger_writer.py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys")
    return tmp_path


def start(root: Path, name: str, *, count: int) -> "subprocess.Popen[str]":
    # The output goes to a file: what a killed writer had acknowledged must not be lost in a pipe.
    with open(root / f"{name}.out", "w") as output:
        return subprocess.Popen(
            [sys.executable, str(WRITER), str(root), name, str(count)], stdout=output, text=True
        )


def acknowledged(root: Path) -> dict[str, int]:
    """Request id to record number, of every whole line that a writer printed."""
    lines = [
        line.split()
        for path in root.glob("*.out")
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return {request_id: int(seq) for seq, request_id in lines}


def read_all(root: Path) -> dict[str, int]:
    """Verify the whole log and every blob that it names; request id to record number."""
    store = DirectoryStore(root / "registry")
    ledger = Ledger(store, Trust.load(root / "keys" / "trust.json"))
    state = ledger.refresh()
    entries = list(ledger.records())
    assert [entry.record.seq for entry in entries] == list(range(1, state.seq + 1))
    for entry in entries:
        assert isinstance(entry.record.body, Note)
        ledger.get_blob(entry.record.body.text)
    found = {entry.record.request_id: entry.record.seq for entry in entries}
    assert len(found) == state.seq, "a request was recorded twice"
    return found


def race(root: Path, *, writers: int, records: int) -> None:
    processes = [start(root, f"writer{name}", count=records // writers) for name in range(writers)]
    for process in processes:
        assert process.wait(300) == 0
    found = read_all(root)
    assert found == acknowledged(root)
    assert Counter(request_id.split("-")[0] for request_id in found) == {
        f"writer{name}": records // writers for name in range(writers)
    }
    assert not list(root.glob(f"registry/**/{TEMPORARY_PREFIX}*"))


def kill_at_random(root: Path, *, writers: int, seconds: float, seed: int) -> None:
    """Run writers, kill one at a random moment and start another, while a reader reads on."""
    rng = random.Random(seed)
    store = DirectoryStore(root / "registry")
    reader = Ledger(store, Trust.load(root / "keys" / "trust.json"))
    names = iter(range(10_000))
    processes = [start(root, f"writer{next(names)}", count=0) for _ in range(writers)]
    kills, seen = 0, 0
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.0, 0.4))
            victim = rng.randrange(writers)
            processes[victim].kill()
            processes[victim].wait()
            kills += 1
            processes[victim] = start(root, f"writer{next(names)}", count=0)
            seen_before, seen = seen, reader.refresh().seq
            assert seen >= seen_before
    finally:
        for process in processes:
            process.kill()
            process.wait()

    found = read_all(root)
    said = acknowledged(root)
    assert kills > seconds
    assert len(said) > 10 * seconds
    assert said.items() <= found.items(), "an acknowledged record is missing"
    assert reader.refresh().seq == len(found)


def test_racing_writers_lose_nothing_and_leave_no_gap(root: Path) -> None:
    race(root, writers=4, records=200)


def test_killed_writers_leave_every_acknowledged_record_and_a_readable_log(root: Path) -> None:
    kill_at_random(root, writers=3, seconds=6.0, seed=1)


@pytest.mark.slow
def test_eight_writers_race_for_2000_records(root: Path) -> None:
    race(root, writers=8, records=2000)


@pytest.mark.slow
def test_a_minute_of_kills_loses_nothing(root: Path) -> None:
    kill_at_random(root, writers=8, seconds=60.0, seed=2)
