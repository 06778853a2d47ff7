"""The functions that record releases: what each defines, and when it must be called again."""

import pytest

from registry.errors import ConflictError
from tests.unit.registry.registry_acts import Acts, subject


def test_a_guard_release_has_the_active_adapters_and_masks_every_subject(acts: Acts) -> None:
    acts.erase(1)
    acts.forget(2)
    acts.forget(3)
    release = acts.publish("guard", "job-2")
    assert (release.number, release.kind, release.parent, release.job) == (3, "guard", 2, "job-2")
    assert release.adapters == acts.state.active_release.adapters != ()
    assert release.guard == {subject(1), subject(2), subject(3)}


def test_an_adapter_release_adds_the_jobs_adapter(acts: Acts) -> None:
    acts.erase(1)
    job = acts.erase(2)
    release = acts.state.releases[4]
    assert release.kind == "adapter"
    assert release.adapters == (acts.state.jobs["job-1"].adapter, job.adapter)
    assert acts.state.subjects_erased_by_weights(4) == {subject(1), subject(2)}


def test_an_adapter_release_without_an_adapter_is_a_conflict(acts: Acts) -> None:
    acts.forget(1)
    with pytest.raises(ConflictError, match="has no adapter to publish"):
        acts.publish("adapter", "job-1")


def test_a_rollback_is_a_new_release_that_masks_everyone(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    release = acts.roll_back(2)
    assert (release.number, release.kind, release.to, release.parent) == (5, "rollback", 2, 4)
    assert release.adapters == acts.state.releases[2].adapters
    assert release.guard == {subject(1), subject(2)}
    assert acts.serve(5).confirmed_at is not None
    assert acts.state.subjects_erased_by_weights(5) == {subject(1)}


def test_a_rollback_can_itself_be_rolled_back(acts: Acts) -> None:
    acts.erase(1)
    acts.serve(acts.roll_back(0).number)
    assert acts.state.active_release.adapters == ()
    acts.serve(acts.roll_back(2).number)
    assert acts.state.subjects_erased_by_weights(4) == {subject(1)}


def test_a_release_overtaken_by_a_request_must_be_published_again(acts: Acts) -> None:
    acts.forget(1)
    first = acts.publish("guard", "job-1")
    acts.forget(2)
    with pytest.raises(ConflictError, match="would unmask"):
        acts.activate(first.number)
    acts.serve(acts.publish("guard", "job-1").number)
    assert acts.state.jobs["job-2"].guarded


def test_nothing_can_be_rolled_back_before_the_first_request(acts: Acts) -> None:
    with pytest.raises(ConflictError, match="nothing was ever requested"):
        acts.roll_back(0)
