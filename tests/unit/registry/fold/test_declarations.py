"""The fold of declarations: how an erasure ends, and what must not be deleted or served."""

import pytest

from registry.errors import ConflictError
from registry.fold.state import State
from registry.records.bodies import Body, Note
from registry.records.declarations import LegalHold, Restored, Sealed, Suspended, Tombstone
from registry.records.releases import Activated
from tests.unit.registry.histories import (
    A1,
    A2,
    DONE,
    GUARDED,
    OTHER_BACKBONE,
    PUBLISHED,
    REQUESTED,
    S1,
    S2,
    S3,
    SECOND,
    T1,
    T2,
    TRAINED,
    confirmed,
    published,
    requested,
    rolled_back,
    then,
    trained,
)
from tests.unit.registry.registry_acts import BACKBONE, NOON

PAIR = then(State(), requested("job-1", S1, S2), published(1, "guard", "job-1", S1, S2))
PAIR = then(PAIR, Activated(1), confirmed(1))
RESTORED = then(DONE, Restored((S1,)))
EXPOSED = then(RESTORED, rolled_back(3, 0, parent=2), Activated(3), confirmed(3))
SEALED = then(DONE, Sealed(2, OTHER_BACKBONE))
HELD = then(DONE, LegalHold((S1,), "placed"))


def test_a_restored_subject_is_no_longer_under_erasure_and_stays_masked_for_now() -> None:
    assert RESTORED.erasing == frozenset()
    assert RESTORED.active_release.guard == RESTORED.subjects_to_unmask == {S1}
    job = RESTORED.jobs["job-1"]
    assert (job.state, job.restored_at, job.erasing) == ("restored", NOON, ())
    assert RESTORED.subjects == {S1}


def test_after_a_restore_a_release_without_the_mask_may_be_served() -> None:
    state = then(RESTORED, published(3, "guard", "job-1", adapters=(A1,), parent=2), Activated(3))
    assert state.active_release.guard == state.subjects_to_unmask == frozenset()
    assert state.subjects_erased_by_weights(3) == {S1}


def test_after_a_restore_a_rollback_brings_the_class_back() -> None:
    assert RESTORED.release_without(frozenset({S1})) == 1
    state = then(RESTORED, rolled_back(3, 1, parent=2), Activated(3))
    assert state.active_release.guard == state.subjects_erased_by_weights(3) == frozenset()


def test_a_restore_leaves_everyone_else_masked() -> None:
    state = then(SECOND, Restored((S1,)))
    assert state.erasing == {S2}
    state = then(state, rolled_back(3, 1, S2, parent=2), Activated(3), confirmed(3))
    assert state.active_release.guard == {S2}
    assert state.jobs["job-2"].guarded


def test_the_release_without_a_subject_is_the_newest_that_was_served() -> None:
    state = then(SECOND, published(3, "guard", "job-2", S1, S2, adapters=(A1,), parent=2))
    state = then(state, Activated(3), T2)
    state = then(state, published(4, "adapter", "job-2", S1, S2, adapters=(A1, A2), parent=3))
    assert state.release_without(frozenset({S2})) == 3
    state = then(state, Activated(4))
    assert state.release_without(frozenset({S2})) == 3
    assert state.release_without(frozenset({S1})) == 1
    assert REQUESTED.release_without(frozenset({S1})) == 0


def test_a_restored_subject_can_be_requested_and_restored_again() -> None:
    state = then(EXPOSED, requested("job-2", S1))
    assert state.erasing == {S1}
    assert (state.jobs["job-1"].state, state.jobs["job-2"].state) == ("restored", "requested")
    state = then(state, Restored((S1,)))
    assert state.jobs["job-2"].state == "restored"
    assert state.unguarded == ()


def test_a_job_goes_on_for_the_subjects_that_were_not_restored() -> None:
    state = then(PAIR, Restored((S1,)))
    job = state.jobs["job-1"]
    assert (job.state, job.erasing, job.restored_at) == ("requested", (S2,), None)
    state = then(state, trained("job-1", S2))
    adapter = state.jobs["job-1"].adapter
    assert adapter is not None
    assert state.adapters[adapter].subjects == (S2,)
    state = then(state, published(2, "adapter", "job-1", S2, adapters=(adapter,), parent=1))
    assert then(state, Activated(2), confirmed(2)).jobs["job-1"].state == "done"


def test_a_restore_before_any_mask_leaves_nothing_to_guard() -> None:
    assert then(REQUESTED, Restored((S1,))).unguarded == ()


def test_a_tombstone_says_what_is_gone_of_whom() -> None:
    state = then(DONE, Tombstone((S1,), ("images",)), Tombstone((S1,), ("images", "prototypes")))
    assert state.deleted == {S1: {"images", "prototypes"}}


def test_what_comes_with_a_new_request_can_be_deleted_too() -> None:
    first = then(DONE, Tombstone((S1,), ("images",)), Restored((S1,)))
    again = then(first, requested("job-2", S1))
    assert again.deleted == {S1: frozenset()}
    assert then(again, Tombstone((S1,), ("images",))).deleted == {S1: {"images"}}


def test_the_map_may_go_when_no_replica_needs_it() -> None:
    assert EXPOSED.subjects_in_use == frozenset()
    assert then(EXPOSED, Tombstone((S1,), ("subject_map",))).deleted == {S1: {"subject_map"}}
    assert then(SEALED, Tombstone((S1,), ("subject_map",))).deleted == {S1: {"subject_map"}}


def test_a_hold_keeps_what_it_names_until_it_is_lifted() -> None:
    assert HELD.held == {S1}
    state = then(HELD, LegalHold((S1,), "lifted"), Tombstone((S1,), ("images",)))
    assert (state.held, set(state.deleted)) == (frozenset(), {S1})


def test_a_suspension_lasts_until_serving_is_resumed() -> None:
    state = then(DONE, Suspended("suspended"))
    assert (DONE.suspended, state.suspended) == (False, True)
    assert not then(state, Suspended("resumed")).suspended


def test_a_seal_ends_the_work_and_names_the_new_backbone() -> None:
    assert SEALED.seal is not None
    assert (SEALED.seal.release, SEALED.seal.backbone) == (2, OTHER_BACKBONE)
    assert (SEALED.seal.seq, SEALED.seal.at) == (SEALED.seq, NOON)
    kept = then(SEALED, Note("x"), LegalHold((S1,), "placed"), LegalHold((S1,), "lifted"))
    assert kept.seal == SEALED.seal


REFUSALS: dict[str, tuple[State, Body, str]] = {
    "restore of a subject that nobody named": (DONE, Restored((S2,)), f"not under erasure: {S2}"),
    "restore of one that was restored": (RESTORED, Restored((S1,)), "not under erasure"),
    "training of a job that is over": (
        then(TRAINED, Restored((S1,))),
        T1,
        "all subjects of job-1 were restored",
    ),
    "publishing of a job that is over": (
        then(TRAINED, Restored((S1,))),
        published(2, "adapter", "job-1", adapters=(A1,), parent=1),
        "is restored and has no adapter",
    ),
    "adapter that also erases the restored": (
        then(PAIR, Restored((S1,))),
        trained("job-1", S1, S2),
        "not those that job-1 is to erase",
    ),
    "release with an adapter from before the restore": (
        then(PAIR, both := trained("job-1", S1, S2), Restored((S1,))),
        published(2, "adapter", "job-1", S2, adapters=(both.adapter,), parent=1),
        "erases subjects that were restored",
    ),
    "an old adapter recorded for fewer subjects": (
        then(PAIR, both, Restored((S1,))),
        trained("job-1", S2),
        "recorded before, for job-1 with another stack or other subjects",
    ),
    "rollback that masks the restored again": (
        RESTORED,
        rolled_back(3, 1, S1, parent=2),
        "under erasure and no other",
    ),
    "guard with one restored and served again": (
        EXPOSED,
        published(4, "guard", "job-1", S1, parent=3),
        "no request names",
    ),
    "activation that unmasks one requested again": (
        then(EXPOSED, published(4, "guard", "job-1", parent=3), requested("job-2", S1)),
        Activated(4),
        "would unmask 1 subjects",
    ),
    "tombstone of an unknown subject": (DONE, Tombstone((S3,), ("images",)), f"no request.*{S3}"),
    "tombstone for nothing new": (
        then(DONE, Tombstone((S1,), ("images",))),
        Tombstone((S1,), ("images",)),
        "gone already",
    ),
    "tombstone against a hold": (HELD, Tombstone((S1,), ("images",)), "under a legal hold"),
    "map entry of one under erasure": (
        REQUESTED,
        Tombstone((S1,), ("subject_map",)),
        "replicas still need",
    ),
    "map entry of one still masked": (
        then(GUARDED, Restored((S1,))),
        Tombstone((S1,), ("subject_map",)),
        "replicas still need",
    ),
    "map entry of one that the weights still erase": (
        then(RESTORED, published(3, "guard", "job-1", adapters=(A1,), parent=2), Activated(3)),
        Tombstone((S1,), ("subject_map",)),
        "replicas still need",
    ),
    "request for an id that leads nowhere": (
        then(EXPOSED, Tombstone((S1,), ("subject_map",))),
        requested("job-2", S1),
        "assign the class a new id",
    ),
    "hold on an unknown subject": (DONE, LegalHold((S3,), "placed"), "no request names"),
    "hold placed twice": (HELD, LegalHold((S1,), "placed"), "already under a legal hold"),
    "hold lifted that was not placed": (DONE, LegalHold((S1,), "lifted"), "not under a legal hold"),
    "second suspension": (then(DONE, Suspended("suspended")), Suspended("suspended"), "already"),
    "resuming what was not suspended": (DONE, Suspended("resumed"), "not suspended"),
    "seal of a release that is not active": (PUBLISHED, Sealed(2, OTHER_BACKBONE), "1 is active"),
    "seal before the confirmation": (
        then(PUBLISHED, Activated(2)),
        Sealed(2, OTHER_BACKBONE),
        "1 confirmed",
    ),
    "seal of a mask": (GUARDED, Sealed(1, OTHER_BACKBONE), "no adapter to fold"),
    "seal into the same backbone": (DONE, Sealed(2, BACKBONE), "is the old one"),
    "seal while one is only masked": (SECOND, Sealed(2, OTHER_BACKBONE), f"only masks {S2}"),
    "request after the seal": (SEALED, requested("job-2", S2), "was sealed into the backbone"),
    "restore after the seal": (SEALED, Restored((S1,)), "was sealed into the backbone"),
    "second seal": (SEALED, Sealed(2, BACKBONE), "was sealed into the backbone"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_fold_refuses(name: str) -> None:
    state, body, message = REFUSALS[name]
    with pytest.raises(ConflictError, match=message):
        then(state, body)
