"""The fold of releases on trial, and of provisional adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.errors import ConflictError
from registry.fold.state_json import state_from_json, state_to_json
from registry.log.ledger import Ledger
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import Acts, subject


def published(acts: Acts, number: int) -> int:
    """A release that isn't active yet, for a new job that is guarded and trained."""
    job = acts.forget(number, canary=10)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id)
    return acts.publish("adapter", job.id).number


def test_a_trial_ends_by_activation_or_by_its_return_and_both_are_final(acts: Acts) -> None:
    release = published(acts, 1)
    state = acts.try_out(release)
    assert state.trial is not None
    assert (state.trial.release, state.trial.percent, state.trial.seq) == (
        release,
        10,
        state.seq,
    )
    assert state.active == release - 1
    with pytest.raises(ConflictError, match="on trial already"):
        acts.try_out(release)
    acts.serve(release)
    assert acts.state.trial is None
    assert acts.state.jobs["job-1"].state == "done"
    second = published(acts, 2)
    acts.try_out(second)
    state = acts.take_off(second)
    assert (state.trial, state.releases[second].returned) == (None, "it leaks")
    assert acts.take_off(second) is state
    with pytest.raises(ConflictError, match="was returned"):
        acts.try_out(second)
    with pytest.raises(ConflictError, match="was returned"):
        acts.activate(second)
    assert state_from_json(state_to_json(state)) == state


def test_whatever_is_activated_ends_a_trial(acts: Acts) -> None:
    release = published(acts, 1)
    acts.try_out(release)
    assert state_from_json(state_to_json(acts.state)) == acts.state
    job = acts.forget(2)
    assert acts.state.trial is not None
    acts.serve(acts.publish("guard", job.id).number)
    assert acts.state.trial is None
    with pytest.raises(ConflictError, match="defined for a job on the active release"):
        acts.try_out(release)
    again = acts.publish("adapter", "job-1").number
    assert acts.state.releases[again].guard == {subject(1), subject(2)}
    acts.try_out(again)


def test_a_canary_never_forgets_less_than_the_active_release(acts: Acts) -> None:
    release = published(acts, 1)
    acts.forget(2)  # the class is under erasure, and releases defined before don't mask it
    with pytest.raises(ConflictError, match="forgets less"):
        acts.try_out(release)
    with pytest.raises(ConflictError, match="was not defined for a job"):
        acts.try_out(1)


def test_a_provisional_adapter_is_served_until_another_takes_its_place(acts: Acts) -> None:
    below = acts.erase(9)
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    base = acts.state.active_release.adapters
    quick = acts.train(job.id, provisional=True)
    acts.serve(acts.publish("adapter", job.id).number)
    assert acts.state.active_release.adapters == (*base, quick.id)
    assert subject(1) in acts.state.subjects_erased_by_weights(acts.state.active)
    assert acts.state.jobs[job.id].state == "published"
    # Another class's guard comes in between; the final adapter fits the stack from before.
    other = acts.forget(2)
    acts.serve(acts.publish("guard", other.id).number)
    assert acts.state.stack_for(job.id) == base
    assert acts.state.stack_for(other.id) == (*base, quick.id)
    good = acts.train(job.id)
    assert good.stack == base
    release = acts.publish("adapter", job.id)
    assert release.adapters == (*base, good.id)
    acts.try_out(release.number)
    acts.serve(release.number)
    assert acts.state.jobs[job.id].state == "done"
    with pytest.raises(ConflictError, match="nothing to train"):
        acts.train(job.id)
    assert acts.state.jobs[below.id].state == "done"


def test_a_refusal_leaves_the_provisional_adapter_in_service(acts: Acts) -> None:
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    acts.train(job.id, provisional=True)
    acts.serve(acts.publish("adapter", job.id).number)
    acts.refuse(job.id)
    assert acts.state.jobs[job.id].state == "refused"
    assert acts.state.subjects_erased_by_weights(acts.state.active) == {subject(1)}


# -- golden

GOLDEN = Path(__file__).parents[1] / "golden" / "v1-trials"
HEAD = "sha256:994b02e041a5fa84d91d9b868b5b9d336ad27e64014a13454cdb9dfe83da5ba6"


def test_a_registry_with_trials_means_what_it_meant(tmp_path: Path) -> None:
    """As in `test_golden`, the registry was written once and must never be rewritten."""
    shutil.copytree(GOLDEN / "registry", tmp_path / "registry")
    store, trust = DirectoryStore(tmp_path / "registry"), Trust.load(GOLDEN / "trust.json")
    found = verify(store, trust)
    assert found.problems == found.orphans == found.strays == ()
    assert found.head == HEAD
    ledger = Ledger(store, trust)
    state = ledger.refresh()
    assert [(job.id, job.state, job.canary) for job in state.jobs.values()] == [
        ("job-1", "done", 10),
        ("job-2", "published", None),
        ("job-3", "published", 25),
    ]
    quick = next(entry for entry in state.adapters.values() if entry.provisional)
    assert quick.job == "job-2"
    assert state.active_release.adapters[-1] == quick.id
    returned = [release.number for release in state.releases.values() if release.returned]
    assert len(returned) == 1
    assert state.trial is not None
    assert (state.trial.release, state.trial.percent) == (state.last_release, 25)
