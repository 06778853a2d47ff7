"""The fold of a compaction: which stacks it may replace, what it changes, and what stays."""

import re
import shutil
from pathlib import Path

import pytest

from registry.errors import ConflictError
from registry.fold.state import State
from registry.log.adapters import adapter_files
from registry.log.ledger import Ledger
from registry.records.bodies import Compacted
from registry.records.declarations import Restored
from registry.records.releases import Activated, Published
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.verification import verify
from tests.unit.registry.histories import (
    A1,
    A2,
    DONE,
    FOLDED,
    REPORT,
    S1,
    S2,
    S3,
    SERVED,
    TWO,
    UNKNOWN_ADAPTER,
    C,
    compacted,
    compaction,
    confirmed,
    published,
    requested,
    rolled_back,
    then,
    trained,
)


def refuses(state: State, body: Compacted | Published, why: str) -> None:
    with pytest.raises(ConflictError, match=re.escape(why)):
        then(state, body)


def test_a_compaction_is_an_adapter_without_a_job_that_names_what_it_stands_for() -> None:
    entry = FOLDED.adapters[C.adapter]
    assert (entry.job, entry.stack, entry.folds) == (None, (), (A1, A2))
    assert entry.subjects == (S1, S2)
    assert FOLDED.releases == TWO.releases
    assert FOLDED.jobs == TWO.jobs


def test_its_release_erases_and_masks_what_the_active_one_did() -> None:
    before, after = TWO.active_release, SERVED.active_release
    assert (after.kind, after.adapters, after.job) == ("compaction", (C.adapter,), None)
    assert after.guard == before.guard
    assert SERVED.subjects_erased_by_weights(4) == TWO.subjects_erased_by_weights(3)
    assert SERVED.adapters_in_force(4).keys() == {C.adapter, A1, A2}
    assert {job.state for job in SERVED.jobs.values()} == {"done"}


def test_one_can_go_back_to_before_it_and_forth_again() -> None:
    back = then(SERVED, rolled_back(5, 3, S1, S2, adapters=(A1, A2), parent=4), Activated(5))
    assert back.active_release.adapters == (A1, A2)
    again = then(back, compaction(6, C.adapter, S1, S2, parent=5), Activated(6))
    assert again.active_release.adapters == (C.adapter,)


def test_who_is_restored_from_a_compaction_is_brought_back_by_a_release_before_it() -> None:
    state = then(SERVED, Restored((S2,)))
    assert state.release_without(frozenset({S2})) == 2
    state = then(state, rolled_back(5, 2, S1, adapters=(A1,), parent=4), Activated(5))
    assert state.subjects_erased_by_weights(5) == {S1}
    assert state.subjects_to_unmask == frozenset()


def test_the_next_adapter_goes_on_top_and_is_folded_with_it() -> None:
    third = trained("job-3", S3, stack=(C.adapter,))
    state = then(
        SERVED,
        requested("job-3", S3),
        third,
        published(5, "adapter", "job-3", S1, S2, S3, adapters=(C.adapter, third.adapter), parent=4),
        Activated(5),
    )
    again = compacted(C.adapter, third.adapter, subjects=(S1, S2, S3), content=2)
    state = then(state, again, compaction(6, again.adapter, S1, S2, S3, parent=5), Activated(6))
    everything = {again.adapter, third.adapter, C.adapter, A1, A2}
    assert state.adapters_in_force(6).keys() == everything
    assert then(state, confirmed(6)).jobs["job-3"].state == "done"


@pytest.mark.parametrize("job", ["job-1", "job-2"])
def test_a_folded_job_is_being_served_and_not_trained_again(job: str) -> None:
    with pytest.raises(ConflictError, match="is being served"):
        then(SERVED, trained(job, S1 if job == "job-1" else S2, stack=(C.adapter,), content="x"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (compacted(A1, UNKNOWN_ADAPTER), f"no record defines the adapters {UNKNOWN_ADAPTER}"),
        (compacted(A1, A2, subjects=(S1,)), "the subjects of a compaction are those"),
        (compacted(A1, A2, subjects=(S1, S2, S3)), "the subjects of a compaction are those"),
        (compacted(A2, A1), "was recorded before, for another stack"),
        (compacted(A1, C.adapter), "can't stand for itself"),
    ],
)
def test_a_compaction_that_can_not_be_is_refused(body: Compacted, why: str) -> None:
    refuses(FOLDED, body, why)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (compaction(4, A1, S1, S2, parent=3), "has one adapter, which stands for those"),
        (compaction(4, UNKNOWN_ADAPTER, S1, S2, parent=3), "has one adapter, which stands for"),
        (compaction(4, C.adapter, S1, parent=3), "masks what the active release masks"),
        (compaction(4, C.adapter, S1, S2, S3, parent=3), "that no request names|masks what"),
        (compaction(5, C.adapter, S1, S2, parent=3), "the next release is 4"),
        (compaction(4, C.adapter, S1, S2, parent=2), "a release is built on the active one"),
        (compaction(4, C.adapter, S1, S2, parent=3, backbone=REPORT), "belongs to the backbone"),
    ],
)
def test_a_release_that_is_no_compaction_of_the_active_one_is_refused(
    body: Published, why: str
) -> None:
    with pytest.raises(ConflictError, match=why):
        then(FOLDED, body)


def test_a_compaction_of_a_stack_that_is_no_longer_active_is_refused() -> None:
    state = then(FOLDED, rolled_back(4, 2, S1, S2, adapters=(A1,), parent=3), Activated(4))
    refuses(state, compaction(5, C.adapter, S1, S2, parent=4), "compact again")


def test_a_trained_adapter_can_not_take_a_compactions_id() -> None:
    body = trained("job-1", S1)
    made = compacted(A1, subjects=(S1,), content=7)
    state = then(DONE, made)
    clash = type(body)("job-1", made.adapter, made.files, (S1,), (), REPORT)
    back = then(state, rolled_back(3, 0, S1, parent=2), Activated(3))
    with pytest.raises(ConflictError, match="was recorded before"):
        then(back, clash)


# -- golden

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-compaction"
HEAD = "sha256:8e06cbbb86483c1dfe634dccf2f1cc0f3812d55165cf693ac83ce6e73b3df099"


def test_a_registry_with_compactions_means_what_it_meant(tmp_path: Path) -> None:
    """As in `test_golden`, the registry was written once and must never be rewritten."""
    shutil.copytree(GOLDEN / "registry", tmp_path / "registry")
    store, trust = DirectoryStore(tmp_path / "registry"), Trust.load(GOLDEN / "trust.json")
    found = verify(store, trust)
    assert found.problems == found.orphans == found.strays == ()
    assert (found.seq, found.head) == (35, HEAD)
    ledger = Ledger(store, trust)
    state = ledger.refresh()
    assert [r.number for r in state.releases.values() if r.kind == "compaction"] == [5, 8]
    first, second = (state.adapters[state.releases[number].adapters[0]] for number in (5, 8))
    assert first.folds == state.releases[4].adapters
    assert second.folds == state.releases[7].adapters == (first.id, state.jobs["job-3"].adapter)
    assert adapter_files(ledger, second.id) == {"forget.json": b'{"golden":"all three"}'}
    classes = SubjectMap(store).class_of
    assert [classes(subject) for subject in second.subjects] == ["seven", "Zoë", "eight"]
    assert {job.state for job in state.jobs.values()} == {"done"}
    assert state.active_release.to == 4
    assert len(state.active_release.guard) == 3
