"""The fold's rules, each with the shortest history that breaks it, and the states that result."""

from dataclasses import replace

import pytest

from registry.errors import ConflictError
from registry.fold.rules import apply
from registry.fold.state import BARE, Release, State
from registry.records.bodies import Body, Note, Refused
from registry.records.releases import Activated
from tests.unit.registry.histories import (
    A1,
    A2,
    DONE,
    GUARDED,
    OTHER_BACKBONE,
    PUBLISHED,
    REPORT,
    REQUESTED,
    S1,
    S2,
    S3,
    SECOND,
    T1,
    T2,
    TRAINED,
    UNKNOWN_ADAPTER,
    confirmed,
    published,
    requested,
    rolled_back,
    then,
    trained,
)
from tests.unit.registry.registry_acts import BACKBONE, NOON, Acts, record_after


def test_the_empty_log_serves_the_bare_backbone() -> None:
    state = State()
    assert state.active_release == BARE == Release(0, "bare", (), frozenset())
    assert (state.seq, state.last_release, state.confirmed, state.backbone) == (0, 0, 0, None)


def test_a_request_puts_its_subjects_under_erasure() -> None:
    state = then(State(), requested("job-1", S2, S1))
    assert state.erasing == {S1, S2}
    assert state.backbone == BACKBONE
    assert state.requests == {"forced-1": "job-1"}
    assert state.unguarded == ("job-1",)
    job = state.jobs["job-1"]
    assert (job.state, job.guarded, job.subjects) == ("requested", False, (S2, S1))
    assert (job.seq, job.at, job.actor, job.reason) == (1, NOON, "ops", "a test")


def test_a_defined_release_is_not_active_and_an_active_one_is_not_confirmed() -> None:
    state = then(REQUESTED, published(1, "guard", "job-1", S1))
    assert (state.active, state.last_release, state.releases[1].activated_at) == (0, 1, None)
    state = then(state, Activated(1))
    assert (state.active, state.confirmed, state.releases[1].activated_at) == (1, 0, NOON)
    assert not state.jobs["job-1"].guarded
    state = then(state, confirmed(1))
    assert (state.confirmed, state.releases[1].confirmed_at) == (1, NOON)
    assert state.jobs["job-1"].guarded
    assert state.jobs["job-1"].state == "requested"
    assert state.unguarded == ()


def test_a_job_is_done_when_a_release_with_its_adapter_is_confirmed() -> None:
    assert TRAINED.jobs["job-1"].state == "trained"
    assert PUBLISHED.jobs["job-1"].state == "published"
    assert PUBLISHED.jobs["job-1"].release == 2
    assert then(PUBLISHED, Activated(2)).jobs["job-1"].state == "published"
    assert (DONE.jobs["job-1"].state, DONE.jobs["job-1"].done_at) == ("done", NOON)


def test_a_release_tells_its_whole_origin() -> None:
    assert DONE.releases[2] == Release(
        number=2,
        kind="adapter",
        adapters=(A1,),
        guard=frozenset({S1}),
        parent=1,
        job="job-1",
        to=None,
        seq=6,
        at=NOON,
        actor="ops",
        request_id="forced-6",
        activated_at=NOON,
        confirmed_at=NOON,
        confirmed_ms=12.5,
    )


def test_a_second_adapter_goes_on_top_of_the_first() -> None:
    state = then(
        SECOND,
        T2,
        published(3, "adapter", "job-2", S1, S2, adapters=(A1, A2), parent=2),
        Activated(3),
        confirmed(3),
    )
    assert state.subjects_erased_by_weights(0) == frozenset()
    assert state.subjects_erased_by_weights(1) == frozenset()
    assert state.subjects_erased_by_weights(2) == {S1}
    assert state.subjects_erased_by_weights(3) == {S1, S2}


def test_any_confirmed_mask_guards_every_job_that_it_covers() -> None:
    state = then(SECOND, requested("job-3", S3))
    state = then(state, published(3, "guard", "job-3", S1, S2, S3, adapters=(A1,), parent=2))
    state = then(state, Activated(3), confirmed(3))
    assert state.jobs["job-2"].guarded
    assert state.jobs["job-3"].guarded
    assert state.unguarded == ()


def test_a_confirmation_also_finishes_a_job_whose_own_release_was_overtaken() -> None:
    state = then(PUBLISHED, Activated(2), requested("job-2", S2))
    state = then(state, published(3, "guard", "job-2", S1, S2, adapters=(A1,), parent=2))
    assert state.jobs["job-1"].state == "published"
    assert then(state, Activated(3), confirmed(3)).jobs["job-1"].state == "done"


def test_a_rollback_keeps_the_earlier_weights_and_masks_everyone_under_erasure() -> None:
    state = then(SECOND, rolled_back(3, 1, S1, S2, parent=2), Activated(3))
    assert state.active_release.adapters == ()
    assert state.active_release.guard == {S1, S2}
    assert (state.active_release.kind, state.active_release.to) == ("rollback", 1)
    assert state.subjects_erased_by_weights(3) == frozenset()


def test_a_rollback_to_the_bare_backbone_masks_everyone_under_erasure() -> None:
    state = then(DONE, rolled_back(3, 0, S1, parent=2), Activated(3))
    assert (state.active_release.adapters, state.active_release.guard) == ((), {S1})


def test_a_refusal_leaves_the_guard_on_and_the_job_may_be_trained_again() -> None:
    state = then(TRAINED, Refused("job-1", "gates", "H fell", None))
    job = state.jobs["job-1"]
    assert (job.state, job.guarded) == ("refused", True)
    assert job.refusal is not None
    assert (job.refusal.stage, job.refusal.detail) == ("gates", "H fell")
    assert state.erasing == {S1}
    again = then(state, trained("job-1", S1, content="second try")).jobs["job-1"]
    assert (again.state, again.refusal) == ("trained", None)
    assert again.adapter not in (None, A1)


def test_a_job_whose_adapter_was_rolled_back_may_be_trained_again() -> None:
    state = then(DONE, rolled_back(3, 1, S1, parent=2), Activated(3))
    assert then(state, trained("job-1", S1, content="new")).jobs["job-1"].state == "trained"


def test_the_same_adapter_recorded_again_is_the_same_entry() -> None:
    state = then(TRAINED, T1)
    assert list(state.adapters) == [A1]
    assert state.adapters[A1].seq == TRAINED.seq + 1


def test_a_note_changes_nothing_but_the_position() -> None:
    state = then(DONE, Note("hello"))
    assert state == replace(DONE, seq=DONE.seq + 1, head=state.head)


REFUSALS: dict[str, tuple[State, Body, str]] = {
    "subject already under erasure": (
        REQUESTED,
        requested("job-2", S2, S1),
        f"already under erasure: {S1}",
    ),
    "job id taken": (REQUESTED, requested("job-1", S2), "job-1 exists already"),
    "request for another backbone": (
        REQUESTED,
        requested("job-2", S2, backbone=OTHER_BACKBONE),
        "belongs to the backbone",
    ),
    "training of an unknown job": (REQUESTED, trained("job-9", S1), "no job job-9"),
    "adapter for other subjects": (REQUESTED, trained("job-1", S2), "subjects are not those"),
    "adapter for some of the subjects": (
        then(State(), requested("job-1", S1, S2)),
        trained("job-1", S1),
        "subjects are not those",
    ),
    "adapter on an unknown stack": (
        REQUESTED,
        trained("job-1", S1, stack=(UNKNOWN_ADAPTER,)),
        "no record defines the adapters",
    ),
    "adapter in its own stack": (
        TRAINED,
        replace(T1, stack=(A1,)),
        "can't be in its own stack",
    ),
    "adapter of another job": (
        then(TRAINED, requested("job-2", S2)),
        replace(T1, job="job-2", subjects=(S2,)),
        "was recorded before, for job-1",
    ),
    "training of what is served": (DONE, T1, "is being served"),
    "refusal of what is served": (DONE, Refused("job-1", "x", "", None), "is being served"),
    "refusal of an unknown job": (REQUESTED, Refused("job-9", "x", "", None), "no job job-9"),
    "gap in the release numbers": (
        REQUESTED,
        published(2, "guard", "job-1", S1),
        "next release is 1, not 2",
    ),
    "release number used twice": (
        GUARDED,
        published(1, "guard", "job-1", S1, parent=1),
        "next release is 2, not 1",
    ),
    "release that unmasks a subject": (
        then(REQUESTED, requested("job-2", S2)),
        published(1, "guard", "job-1", S1),
        f"would unmask 1 subjects under erasure: {S2}",
    ),
    "guard with a subject that nobody named": (
        REQUESTED,
        published(1, "guard", "job-1", S1, S2),
        "no request names",
    ),
    "release for an unknown job": (REQUESTED, published(1, "guard", "job-9", S1), "no job job-9"),
    "release on another than the active one": (
        GUARDED,
        published(2, "guard", "job-1", S1, parent=0),
        "built on the active one, 1, not on 0",
    ),
    "release of another backbone": (
        REQUESTED,
        published(1, "guard", "job-1", S1, backbone=OTHER_BACKBONE),
        "belongs to the backbone",
    ),
    "guard release that drops an adapter": (
        SECOND,
        published(3, "guard", "job-2", S1, S2, parent=2),
        "this one has others",
    ),
    "adapter release before the training": (
        GUARDED,
        published(2, "adapter", "job-1", S1, parent=1),
        "is requested and has no adapter",
    ),
    "adapter release after a refusal": (
        then(TRAINED, Refused("job-1", "gates", "", None)),
        published(2, "adapter", "job-1", S1, adapters=(A1,), parent=1),
        "is refused and has no adapter",
    ),
    "adapter release without the adapter": (
        TRAINED,
        published(2, "adapter", "job-1", S1, parent=1),
        "this one has others",
    ),
    "adapter release with an unknown adapter": (
        TRAINED,
        published(2, "adapter", "job-1", S1, adapters=(UNKNOWN_ADAPTER,), parent=1),
        "this one has others",
    ),
    "adapter trained on another stack than it would be served on": (
        then(SECOND, trained("job-2", S2, stack=())),
        published(3, "adapter", "job-2", S1, S2, adapters=(A1, A2), parent=2),
        "trained on another stack",
    ),
    "rollback to an unknown release": (DONE, rolled_back(3, 7, S1, parent=2), "no release 7"),
    "rollback to the active release": (
        DONE,
        rolled_back(3, 2, S1, adapters=(A1,), parent=2),
        "is the active one",
    ),
    "rollback to a release that was never active": (
        PUBLISHED,
        rolled_back(3, 2, S1, adapters=(A1,), parent=1),
        "never active",
    ),
    "rollback with other adapters": (
        DONE,
        rolled_back(3, 1, S1, adapters=(A1,), parent=2),
        "this one doesn't",
    ),
    "rollback that unmasks a subject": (
        SECOND,
        rolled_back(3, 1, S1, parent=2),
        "this one doesn't",
    ),
    "activation of an unknown release": (DONE, Activated(3), "no release 3"),
    "activation of the active release": (DONE, Activated(2), "numbers only grow"),
    "activation of an older release": (DONE, Activated(1), "numbers only grow"),
    "activation that unmasks a subject named since": (
        then(REQUESTED, published(1, "guard", "job-1", S1), requested("job-2", S2)),
        Activated(1),
        f"would unmask 1 subjects under erasure: {S2}",
    ),
    "activation of a release built on one that is no longer active": (
        then(
            TRAINED,
            published(2, "adapter", "job-1", S1, adapters=(A1,), parent=1),
            published(3, "guard", "job-1", S1, parent=1),
            Activated(2),
        ),
        Activated(3),
        "built on release 1, but release 2 is active",
    ),
    "confirmation of an unknown release": (DONE, confirmed(3), "no release 3"),
    "confirmation of the bare backbone": (DONE, confirmed(0), "never activated"),
    "confirmation before activation": (PUBLISHED, confirmed(2), "never activated"),
    "second confirmation": (DONE, confirmed(2), "release 2 is confirmed"),
    "confirmation of an overtaken release": (
        then(PUBLISHED, Activated(2), confirmed(2)),
        confirmed(1),
        "release 2 is confirmed",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_fold_refuses(name: str) -> None:
    state, body, message = REFUSALS[name]
    with pytest.raises(ConflictError, match=message):
        then(state, body)


def test_the_fold_refuses_a_request_id_used_before() -> None:
    record = record_after(REQUESTED, requested("job-2", S2))
    with pytest.raises(ConflictError, match="forced-1 exists already, as job-1"):
        apply(REQUESTED, replace(record, request_id="forced-1"), digest=REPORT)


def test_the_fold_refuses_a_record_out_of_order() -> None:
    record = record_after(DONE, Note("hello"))
    for wrong in (replace(record, seq=record.seq + 1), replace(record, prev=REPORT)):
        with pytest.raises(ConflictError, match="can't follow"):
            apply(DONE, wrong, digest=REPORT)


def test_a_state_is_never_changed_by_what_follows_it() -> None:
    before = (dict(DONE.jobs), dict(DONE.releases), dict(DONE.adapters), DONE.erasing)
    then(SECOND, T2, rolled_back(3, 1, S1, S2, parent=2), Activated(3), confirmed(3))
    assert (dict(DONE.jobs), dict(DONE.releases), dict(DONE.adapters), DONE.erasing) == before
    with pytest.raises(TypeError):
        DONE.jobs["job-1"] = DONE.jobs["job-1"]  # type: ignore[index]


def test_every_refused_act_leaves_the_ledger_as_it_was(acts: Acts) -> None:
    acts.erase(1)
    state = acts.state
    for act in (
        lambda: acts.forget(1),
        lambda: acts.train("job-1"),
        lambda: acts.refuse("job-1"),
        lambda: acts.publish("adapter", "job-1"),
        lambda: acts.roll_back(2),
        lambda: acts.activate(1),
        lambda: acts.confirm(1),
    ):
        with pytest.raises(ConflictError):
            act()
    assert acts.ledger.refresh() == state
