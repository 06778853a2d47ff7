"""Which release a restored subject needs, and which jobs are trained again, on real ledgers."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.log.ledger import Ledger
from registry.signing.keys import ROLES, Signer, Trust, init_keys
from registry.store.directory import DirectoryStore
from serving.control.job_views import job_view
from serving.coordination.jobs import adopted_release, is_trained, pending_jobs
from serving.coordination.unserved import (
    is_time_to_bring_back,
    job_about,
    to_bring_back,
    was_taken_off,
    way_back,
)
from tests.unit.registry.registry_acts import Acts, subject

ADA, BO, CY = 1, 2, 3


def acts_in(folder: Path) -> Acts:
    init_keys(folder / "keys")
    signers = {role: Signer.load(folder / "keys" / f"{role}.pem") for role in ROLES}
    trust = Trust.load(folder / "keys" / "trust.json")
    return Acts(Ledger(DirectoryStore(folder / "registry"), trust), signers)


def stage_of(acts: Acts, job: str) -> str:
    view = job_view(
        acts.state.jobs[job], acts.state, class_of=str, progress={}, problem=None, ahead=0
    )
    stage: str = view["state"]
    return stage


def bring_back(acts: Acts) -> None:
    """Do what the coordinator does to bring restored subjects back."""
    to = way_back(acts.state)
    assert to is not None
    acts.serve(acts.roll_back(to).number)


def test_nothing_is_brought_back_that_was_not_restored(acts: Acts) -> None:
    acts.erase(ADA)
    assert to_bring_back(acts.state) == frozenset()
    acts.serve(acts.roll_back(0).number)
    assert to_bring_back(acts.state) == frozenset()


def test_a_restored_subject_is_brought_back_by_the_newest_release_that_knows_it(
    acts: Acts,
) -> None:
    acts.erase(ADA)
    acts.erase(BO)
    acts.restore(BO)
    assert to_bring_back(acts.state) == {subject(BO)}
    to = way_back(acts.state)
    assert to is not None
    assert acts.state.subjects_erased_by_weights(to) == {subject(ADA)}
    bring_back(acts)
    assert to_bring_back(acts.state) == frozenset()
    assert acts.state.active_release.guard == {subject(ADA)}


def test_a_subject_that_was_only_masked_needs_no_other_weights(acts: Acts) -> None:
    acts.erase(ADA)
    job = acts.forget(BO)
    acts.serve(acts.publish("guard", job.id).number)
    acts.restore(BO)
    assert to_bring_back(acts.state) == {subject(BO)}
    assert way_back(acts.state) is None
    acts.serve(acts.publish("guard", job.id).number)
    assert to_bring_back(acts.state) == frozenset()


def test_releases_that_no_replica_could_build_are_defined_ever_more_rarely(acts: Acts) -> None:
    acts.erase(ADA)
    acts.restore(ADA)

    def rested(seconds: float) -> bool:
        at = acts.state.releases[acts.state.last_release].at
        assert at is not None
        now = at + timedelta(seconds=seconds)
        return is_time_to_bring_back(acts.state, now=now, every_s=8)

    assert rested(0)
    for vain in range(1, 12):
        acts.roll_back(0)
        wait = 8 * 2 ** min(vain, 8)
        assert not rested(wait - 1)
        assert rested(wait + 1)
    acts.serve(acts.roll_back(0).number)
    assert rested(0)


def test_a_mask_for_somebody_else_does_not_pass_for_bringing_back(acts: Acts) -> None:
    """The new guard doesn't hold the restored subject, but the weights still erase it."""
    acts.erase(ADA)
    acts.restore(ADA)
    other = acts.forget(BO)
    acts.serve(acts.publish("guard", other.id).number)
    assert acts.state.subjects_to_unmask == frozenset()
    assert to_bring_back(acts.state) == {subject(ADA)}
    bring_back(acts)
    assert to_bring_back(acts.state) == frozenset()


def test_a_later_rollback_to_weights_that_forgot_a_restored_one_is_left_alone(acts: Acts) -> None:
    acts.erase(ADA)
    with_ada = acts.state.active
    acts.restore(ADA)
    bring_back(acts)
    acts.serve(acts.roll_back(with_ada).number)
    assert to_bring_back(acts.state) == frozenset()
    # Forgotten and restored once more, it must be brought back again.
    acts.erase(BO)
    job = acts.forget(ADA)
    acts.serve(acts.publish("guard", job.id).number)
    acts.restore(ADA)
    assert to_bring_back(acts.state) == {subject(ADA)}


def test_who_was_trained_on_top_is_trained_again_and_reads_as_queued(acts: Acts) -> None:
    first, second = acts.erase(ADA), acts.erase(BO)
    assert pending_jobs(acts.state) == []
    acts.restore(ADA)
    assert pending_jobs(acts.state) == []
    bring_back(acts)
    assert [job.id for job in pending_jobs(acts.state)] == [second.id]
    assert stage_of(acts, first.id) == "restored"
    assert stage_of(acts, second.id) == "queued"
    assert adopted_release(acts.state, second.id) is None
    acts.train(second.id)
    assert stage_of(acts, second.id) == "trained"
    made = acts.publish("adapter", second.id)
    acts.serve(made.number)
    assert pending_jobs(acts.state) == []
    assert stage_of(acts, second.id) == "done"
    assert adopted_release(acts.state, second.id) == made.number


def test_who_shared_an_adapter_with_the_restored_one_is_trained_again(acts: Acts) -> None:
    job = acts.erase(ADA, BO)
    acts.restore(ADA)
    bring_back(acts)
    assert [pending.erasing for pending in pending_jobs(acts.state)] == [(subject(BO),)]
    assert stage_of(acts, job.id) == "queued"
    assert acts.state.active_release.guard == {subject(BO)}


def test_a_job_with_no_more_than_a_closed_form_has_still_to_be_trained(acts: Acts) -> None:
    """After a failed training or a restart, the closed form must not count as the training."""
    job = acts.forget(ADA)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id, provisional=True)
    acts.serve(acts.publish("adapter", job.id).number)
    assert [pending.id for pending in pending_jobs(acts.state)] == [job.id]

    def trained() -> bool:
        return is_trained(acts.state, acts.state.jobs[job.id], acts.state.stack_for(job.id))

    assert not trained()
    acts.train(job.id)
    assert trained()


def test_a_rollback_for_quality_puts_no_job_back(acts: Acts) -> None:
    job = acts.erase(ADA)
    acts.erase(BO)
    acts.serve(acts.roll_back(0).number)
    assert pending_jobs(acts.state) == []
    assert not was_taken_off(acts.state, acts.state.jobs[job.id])
    # A later restoration of another subject doesn't change that: its adapter was off already.
    acts.erase(CY)
    acts.restore(CY)
    bring_back(acts)
    assert pending_jobs(acts.state) == []


def train_pending(acts: Acts) -> None:
    """Do what the worker does with the oldest pending job, if there is one."""
    for job in pending_jobs(acts.state)[:1]:
        if not job.guarded:
            acts.serve(acts.publish("guard", job.id).number)
        acts.train(job.id)
        acts.serve(acts.publish("adapter", job.id).number)


STEPS = st.one_of(
    st.tuples(st.just("forget"), st.sets(st.integers(0, 4), min_size=1, max_size=2)),
    st.tuples(st.just("train"), st.just(frozenset())),
    st.tuples(st.just("restore"), st.sets(st.integers(0, 4), min_size=1, max_size=1)),
    st.tuples(st.just("roll back"), st.sets(st.integers(0, 9), min_size=1, max_size=1)),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, min_size=3, max_size=14))
def test_whoever_is_restored_is_served_and_nobody_else_is_exposed(
    steps: list[tuple[str, set[int]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        acts = acts_in(Path(folder))
        for step, numbers in steps:
            state = acts.state
            subjects = {subject(number) for number in numbers}
            if step == "forget" and subjects.isdisjoint(state.erasing):
                acts.serve(acts.publish("guard", acts.forget(*numbers).id).number)
            elif step == "train":
                train_pending(acts)
            elif step == "restore" and subjects <= state.erasing:
                acts.restore(*numbers)
                while to_bring_back(acts.state):
                    to = way_back(acts.state)
                    if to is None:
                        job = job_about(acts.state, to_bring_back(acts.state))
                        acts.serve(acts.publish("guard", job.id).number)
                    else:
                        acts.serve(acts.roll_back(to).number)
                concealed = acts.state.active_release.guard | (
                    acts.state.subjects_erased_by_weights(acts.state.active)
                )
                assert concealed.isdisjoint(subjects)
            elif step == "roll back":
                to = min(numbers) % (state.last_release + 1)
                if to != state.active and state.backbone is not None:
                    acts.serve(acts.roll_back(to).number)
            assert acts.state.erasing <= acts.state.active_release.guard
            assert to_bring_back(acts.state) == frozenset()
        # Every waiting job is trained, each of them once.
        waiting = len(pending_jobs(acts.state))
        for _ in range(waiting):
            train_pending(acts)
        assert pending_jobs(acts.state) == []
