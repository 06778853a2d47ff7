"""The functions that record jobs: what each returns, and that repeating a request is safe."""

import pytest

from registry.errors import ConflictError, NotFoundError, TrustError
from registry.fold.state import Job, State
from registry.log.ledger import Ledger
from registry.publish.jobs import refuse_job, request_forget
from registry.signing.keys import Role, Signer, Trust
from registry.store.contract import Store
from tests.unit.registry.registry_acts import BACKBONE, Acts, subject


def request(acts: Acts, *numbers: int, request_id: str) -> Job:
    return request_forget(
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
        refuse_job(
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


def test_an_act_in_the_wrong_role_is_refused(acts: Acts, signers: dict[Role, Signer]) -> None:
    acts.signers = {**signers, "operator": signers["publisher"]}
    with pytest.raises(TrustError, match="role operator must sign"):
        acts.forget(1)
    assert acts.ledger.refresh().seq == 0
