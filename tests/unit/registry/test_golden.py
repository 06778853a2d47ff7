"""Registries written by earlier versions stay readable: same bytes, same meaning.

`golden/v1` was written once, with keys that were then deleted. Never rewrite it: a version that
can't read it can't read what operators have on disk. New record types get a new directory, such as
`v1-declarations` of `publish/test_declarations` and `v1-compaction` of `fold/test_compaction`.
"""

import shutil
from pathlib import Path

import pytest

from registry.log.adapters import adapter_files
from registry.log.ledger import Ledger
from registry.records.bodies import BODIES
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.verification import verify

HEAD = "sha256:cdbea07abc166d36de79eeada59cbc382f4cd34f84ef2503da469bcaaf527dc6"
TYPES = (
    ["note"]
    + ["requested", "published", "activated", "confirmed"]
    + ["trained", "published", "activated", "confirmed"]
    + ["requested", "published", "activated", "confirmed"]
    + ["refused", "trained", "published", "activated", "confirmed"]
    + ["rolled_back", "activated", "confirmed"]
)
GOLDEN = Path(__file__).with_name("golden") / "v1"


def test_the_golden_registries_hold_every_type_of_record() -> None:
    folders = [path.parent for path in GOLDEN.parent.glob("*/trust.json")]
    found: set[str] = set()
    for folder in folders:
        ledger = Ledger(DirectoryStore(folder / "registry"), Trust.load(folder / "trust.json"))
        ledger.refresh(each=lambda entry: found.add(entry.record.type))
    assert len(folders) >= 3
    assert found == set(BODIES)


@pytest.fixture
def golden(tmp_path: Path) -> DirectoryStore:
    shutil.copytree(GOLDEN / "registry", tmp_path / "registry")
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def golden_trust() -> Trust:
    return Trust.load(GOLDEN / "trust.json")


def test_a_version_1_registry_verifies(golden: DirectoryStore, golden_trust: Trust) -> None:
    found = verify(golden, golden_trust)
    assert found.problems == found.orphans == found.strays == ()
    assert (found.seq, found.blobs) == (21, 6)
    assert found.head == HEAD


def test_a_version_1_registry_means_what_it_meant(
    golden: DirectoryStore, golden_trust: Trust
) -> None:
    ledger = Ledger(golden, golden_trust)
    state = ledger.refresh()
    assert [entry.record.type for entry in ledger.records()] == TYPES
    assert (state.active, state.confirmed, state.last_release) == (5, 5, 5)
    assert [release.kind for release in state.releases.values()] == [
        "bare",
        "guard",
        "adapter",
        "guard",
        "adapter",
        "rollback",
    ]
    assert [(job.id, job.state, job.guarded) for job in state.jobs.values()] == [
        ("job-1", "done", True),
        ("job-2", "done", True),
    ]
    assert state.active_release.to == 2
    assert state.active_release.guard == state.erasing
    classes = {SubjectMap(golden).class_of(subject) for subject in state.erasing}
    assert classes == {"seven", "Zoë"}
    erased = state.subjects_erased_by_weights(state.active)
    assert {SubjectMap(golden).class_of(subject) for subject in erased} == {"seven"}
    (adapter,) = state.active_release.adapters
    assert adapter_files(ledger, adapter)["forget.json"] == b'{"golden":1}'
