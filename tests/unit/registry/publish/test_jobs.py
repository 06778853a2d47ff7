"""The recorded acts: what each returns, and that repeating a request is safe."""

import pytest

from registry.errors import ConflictError, NotFoundError, TrustError
from registry.fold.state import Job, State
from registry.log.ledger import Ledger
from registry.publish import jobs as publish
from registry.records.bodies import Note
from registry.signing.keys import Role, Signer, Trust
from registry.store.directory import Store
from tests.unit.registry.registry_acts import BACKBONE, Acts, subject


def request(acts: Acts, *numbers: int, request_id: str) -> Job:
    return publish.request_forget(
        acts.ledger,
        acts.signers["operator"],
        subjects=[subject(number) for number in numbers],
        backbone=BACKBONE,
        actor="ops",
        reason="Art. 17",
        request_id=request_id,
    )


def test_jobs_are_numbered_in_order(acts: Acts) -> None:
    assert [request(acts, n, request_id=f"r-{n}").id for n in (1, 2)] == ["job-1", "job-2"]


def test_the_same_request_again_is_the_same_job_and_no_record(acts: Acts) -> None:
    first = request(acts, 1, 2, request_id="r-1")
    assert request(acts, 2, 1, request_id="r-1") == first
    assert acts.state.seq == 1


def test_the_same_request_again_tells_how_far_the_job_is(acts: Acts) -> None:
    request(acts, 1, request_id="r-1")
    acts.train("job-1")
    assert request(acts, 1, request_id="r-1").state == "trained"


def test_one_request_id_for_two_wishes_is_a_conflict(acts: Acts) -> None:
    request(acts, 1, request_id="r-1")
    with pytest.raises(ConflictError, match="r-1 was made before, as job-1"):
        request(acts, 2, request_id="r-1")


def test_a_trained_adapter_has_its_files_and_report_in_store(acts: Acts) -> None:
    acts.forget(1)
    entry = acts.train("job-1")
    assert (entry.job, entry.subjects, entry.stack) == ("job-1", (subject(1),), ())
    for file in entry.files.values():
        assert len(acts.ledger.get_blob(file.digest)) == file.size
    assert acts.ledger.get_blob(entry.report) == b"report"


def test_a_refusal_that_another_writer_overtook_is_judged_anew(
    acts: Acts, store: Store, trust: Trust
) -> None:
    acts.forget(1)
    acts.train("job-1")
    behind = Acts(Ledger(store, trust), acts.signers, requests=100)
    behind.ledger.refresh()
    acts.publish("adapter", "job-1")

    def unpublished(state: State) -> bool:
        return state.jobs["job-1"].state != "published"

    assert unpublished(behind.state)
    with pytest.raises(ConflictError, match="job-1 is published by now"):
        publish.refuse(
            behind.ledger,
            behind.signers["publisher"],
            job="job-1",
            stage="cancelled",
            detail="a test",
            report=None,
            still=unpublished,
            **behind.origin(),
        )
    assert acts.ledger.refresh().jobs["job-1"].state == "published"


def test_a_refusal_keeps_its_report(acts: Acts) -> None:
    acts.forget(1)
    acts.train("job-1")
    refusal = acts.refuse("job-1").refusal
    assert refusal is not None
    assert refusal.report is not None
    assert acts.ledger.get_blob(refusal.report) == b"bad report"


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


def test_unknown_jobs_and_releases_are_not_found(acts: Acts) -> None:
    acts.forget(1)
    for act in (
        lambda: acts.train("job-7"),
        lambda: acts.refuse("job-7"),
        lambda: acts.publish("guard", "job-7"),
    ):
        with pytest.raises(NotFoundError, match="no job job-7"):
            act()
    for act in (lambda: acts.roll_back(7), lambda: acts.activate(7), lambda: acts.confirm(7)):
        with pytest.raises(NotFoundError, match="no release 7; there are 0"):
            act()


def test_nothing_can_be_rolled_back_before_the_first_request(acts: Acts) -> None:
    with pytest.raises(ConflictError, match="nothing was ever requested"):
        acts.roll_back(0)


def test_a_note_returns_its_record(acts: Acts) -> None:
    record = acts.note("keys rotated")
    assert (record.seq, record.body, record.actor) == (1, Note("keys rotated"), "ops")


def test_an_act_in_the_wrong_role_is_refused(acts: Acts, signers: dict[Role, Signer]) -> None:
    acts.signers = {**signers, "operator": signers["publisher"]}
    with pytest.raises(TrustError, match="role operator must sign"):
        acts.forget(1)
    assert acts.ledger.refresh().seq == 0
