"""The recorded acts about jobs: request, trained, refuse, retry."""

from collections.abc import Callable, Mapping, Sequence

from registry.errors import ConflictError, NotFoundError
from registry.fold.state import AdapterEntry, Job, State
from registry.log.adapters import new_files
from registry.log.ledger import Ledger
from registry.records.bodies import Refused, Requested, Trained
from registry.records.declarations import Retried
from registry.records.record import Draft, digest_of
from registry.signing.keys import Signer


def request_forget(
    ledger: Ledger,
    signer: Signer,
    *,
    subjects: Sequence[str],
    backbone: str,
    actor: str,
    reason: str,
    request_id: str,
    canary: int | None = None,
    batch: bool = False,
) -> Job:
    """Put subjects under erasure. The same `request_id` again returns the job of the first time.

    Needs the role operator. `backbone` is its fingerprint ("sha256:<hex>"), `canary` the percentage
    of requests on which the adapter is tried first. `batch`: the job may be trained together with
    other jobs that have `batch`.
    """

    def make(state: State) -> Draft | None:
        known = state.requests.get(request_id)
        if known is not None:
            if set(state.jobs[known].subjects) != set(subjects):
                raise ConflictError(
                    f"the request {request_id} was made before, as {known}, for other subjects"
                )
            return None
        body = Requested(
            job=f"job-{len(state.jobs) + 1}",
            subjects=tuple(subjects),
            backbone=backbone,
            canary=canary,
            batch=batch,
        )
        return Draft(body, actor, reason, request_id)

    state = ledger.append(make, signer)
    return state.jobs[state.requests[request_id]]


def record_trained(
    ledger: Ledger,
    signer: Signer,
    *,
    job: str,
    files: Mapping[str, bytes],
    stack: Sequence[str],
    report: bytes,
    actor: str,
    reason: str,
    request_id: str,
    provisional: bool = False,
    others: Sequence[str] = (),
) -> AdapterEntry:
    """Store a job's adapter and its report, then record them. Needs the role publisher.

    `files` are the adapter's files by name, `stack` the ids of the adapters that it was trained
    on top of, lowest first. `provisional`: it is served only until the job has another. `others`:
    jobs that were trained with it as one task.
    """
    new = new_files(files, report)

    def make(state: State) -> Draft:
        body = Trained(
            job=job,
            adapter=new.adapter,
            files=new.refs,
            subjects=tuple(s for name in (job, *others) for s in known_job(state, name).erasing),
            stack=tuple(stack),
            report=new.report,
            provisional=provisional,
            others=tuple(others),
        )
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer, blobs=new.blobs).adapters[new.adapter]


def refuse_job(
    ledger: Ledger,
    signer: Signer,
    *,
    job: str,
    stage: str,
    detail: str,
    report: bytes | None,
    actor: str,
    reason: str,
    request_id: str,
    others: Sequence[str] = (),
    still: Callable[[State], bool] = lambda _: True,
) -> Job:
    """Record that a job's adapter wasn't accepted. Its subjects stay under erasure and masked.

    Needs the role publisher. The job may be trained again. `others` were trained with it as one
    task; then only that is refused, and each job is trained alone. `still` is asked about the
    state that the record would follow, which may be newer than the caller's. If it says no, this
    raises ConflictError.
    """
    blobs = {} if report is None else {digest_of(report): report}
    report_digest = next(iter(blobs), None)

    def make(state: State) -> Draft:
        for name in (job, *others):
            known_job(state, name)
        if not still(state):
            raise ConflictError(f"{job} is {state.jobs[job].state} by now")
        body = Refused(job, stage, detail, report_digest, tuple(others))
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer, blobs=blobs).jobs[job]


def retry_job(
    ledger: Ledger, signer: Signer, *, job: str, actor: str, reason: str, request_id: str
) -> Job:
    """Have a refused or cancelled job trained again. The same `request_id` again does nothing.

    Needs the role operator.
    """

    def make(state: State) -> Draft | None:
        if request_id in known_job(state, job).retries:
            return None
        return Draft(Retried(job), actor, reason, request_id)

    return ledger.append(make, signer).jobs[job]


def known_job(state: State, name: str) -> Job:
    """Raises: NotFoundError."""
    if name not in state.jobs:
        raise NotFoundError(f"there is no job {name}")
    return state.jobs[name]
