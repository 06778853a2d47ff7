"""Writers in real processes race for record numbers or are killed, on a folder and a bucket."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from registry.log.ledger import Ledger, utc_now
from registry.records.bodies import Note
from registry.signing.keys import Trust, init_keys
from registry.store.contract import Store
from registry.store.directory import TEMPORARY_PREFIX, DirectoryStore
from tests.integration.registry.bucket_server import BUCKET, BucketServer

WRITER = Path(__file__).with_name("ledger_writer.py")


@dataclass
class Scene:
    """A registry that processes write to, their keys, and what each acknowledged."""

    top: Path
    registry: str
    store: Store
    environment: dict[str, str] | None = None

    @property
    def trust(self) -> Trust:
        return Trust.load(self.top / "keys" / "trust.json")

    def start(self, name: str, *, count: int) -> "subprocess.Popen[str]":
        # Output goes to a file: a pipe could lose what a killed writer had acknowledged.
        with open(self.top / f"{name}.out", "w") as output:
            command = [sys.executable, str(WRITER), self.registry, str(self.top / "keys"), name]
            return subprocess.Popen(
                [*command, str(count)], stdout=output, text=True, env=self.environment
            )

    def acknowledged(self) -> dict[str, int]:
        """Request id -> record number, from every complete line that a writer printed."""
        lines = [
            line.split()
            for path in self.top.glob("*.out")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return {request_id: int(seq) for seq, request_id in lines}

    def await_acknowledged(self, records: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.acknowledged()) < records:
            assert time.monotonic() < deadline, "the writers don't get on"
            time.sleep(0.02)

    def read_all(self) -> dict[str, int]:
        """Verify the whole log and every blob that it names; return request id -> record number."""
        ledger = Ledger(self.store, self.trust)
        entries = []
        state = ledger.refresh(each=entries.append)
        assert [entry.record.seq for entry in entries] == list(range(1, state.seq + 1))
        for entry in entries:
            assert isinstance(entry.record.body, Note)
            ledger.get_blob(entry.record.body.text)
        found = {entry.record.request_id: entry.record.seq for entry in entries}
        assert len(found) == state.seq, "a request was recorded twice"
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Scene:
    init_keys(tmp_path / "keys")
    registry = tmp_path / "registry"
    return Scene(tmp_path, str(registry), DirectoryStore(registry))


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")
    server = BucketServer()
    yield server
    server.kill()


@pytest.fixture
def bucket(tmp_path: Path, server: BucketServer) -> Scene:
    from registry.store.bucket import ObjectStore

    init_keys(tmp_path / "keys")
    url = f"s3://{BUCKET}/{tmp_path.name}"
    return Scene(tmp_path, url, ObjectStore(url, config=server.config), server.environment)


def race(scene: Scene, *, writers: int, records: int) -> None:
    processes = [scene.start(f"writer{name}", count=records // writers) for name in range(writers)]
    for process in processes:
        assert process.wait(500) == 0
    found = scene.read_all()
    assert found == scene.acknowledged()
    assert Counter(request_id.split("-")[0] for request_id in found) == {
        f"writer{name}": records // writers for name in range(writers)
    }


def kill_at_random(
    scene: Scene, *, writers: int, seconds: float, records: int, seed: int
) -> tuple[int, int]:
    """Run writers, kill one at a random moment and start another, while a reader goes on reading.

    A kill comes a moment after up to `records` more records are acknowledged. (After a fixed time,
    a busy machine would kill writers that have not written yet.) Returns the number of kills and of
    acknowledged records.
    """
    rng = random.Random(seed)
    reader = Ledger(scene.store, scene.trust)
    names = iter(range(10_000))
    processes = [scene.start(f"writer{next(names)}", count=0) for _ in range(writers)]
    kills, seen = 0, 0
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or kills < writers:
            scene.await_acknowledged(len(scene.acknowledged()) + rng.randint(1, records))
            time.sleep(rng.uniform(0.0, 0.1))
            victim = rng.randrange(writers)
            processes[victim].kill()
            processes[victim].wait()
            kills += 1
            processes[victim] = scene.start(f"writer{next(names)}", count=0)
            seen_before, seen = seen, reader.refresh().seq
            assert seen >= seen_before
    finally:
        for process in processes:
            process.kill()
            process.wait()

    found = scene.read_all()
    said = scene.acknowledged()
    assert len(said) >= kills
    assert said.items() <= found.items(), "an acknowledged record is missing"
    assert reader.refresh().seq == len(found)
    return kills, len(said)


def test_racing_writers_lose_nothing_and_leave_no_gap(folder: Scene) -> None:
    race(folder, writers=4, records=200)
    assert not list(folder.top.glob(f"registry/**/{TEMPORARY_PREFIX}*"))


def test_killed_writers_leave_every_acknowledged_record_and_a_readable_log(folder: Scene) -> None:
    kill_at_random(folder, writers=3, seconds=5.0, records=9, seed=1)


def test_racing_writers_lose_nothing_in_a_bucket(bucket: Scene) -> None:
    race(bucket, writers=3, records=30)
    assert bucket.store.leftovers(before=utc_now() + timedelta(days=1), delete=False) == ()


@pytest.mark.slow
def test_eight_writers_race_for_2000_records(folder: Scene) -> None:
    race(folder, writers=8, records=2000)
    assert not list(folder.top.glob(f"registry/**/{TEMPORARY_PREFIX}*"))


@pytest.mark.slow
def test_a_minute_of_kills_loses_nothing(folder: Scene) -> None:
    kill_at_random(folder, writers=8, seconds=60.0, records=30, seed=2)


@pytest.mark.slow
def test_a_minute_of_kills_in_a_bucket_loses_nothing(bucket: Scene) -> None:
    """Eight writers write as many records as moto can store in a minute."""
    kills, records = kill_at_random(bucket, writers=8, seconds=60.0, records=12, seed=3)
    print(f"{records} records were acknowledged around {kills} kills")
