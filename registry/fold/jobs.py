"""The fold of jobs: requested, trained (one alone, or several as one task), refused, retried.

As in `rules`: pure, and a record that breaks a rule raises `ConflictError`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType

from registry.errors import ConflictError
from registry.fold.state import AdapterEntry, Job, Refusal, State
from registry.records.bodies import Refused, Requested, Trained
from registry.records.declarations import Retried
from registry.records.record import Record


def requested(state: State, record: Record, body: Requested) -> State:
    """Subjects come under erasure."""
    again = [subject for subject in body.subjects if subject in state.erasing]
    if again:
        raise ConflictError(f"already under erasure: {', '.join(again)}")
    nameless = [s for s in body.subjects if "subject_map" in state.deleted.get(s, ())]
    if nameless:
        raise ConflictError(
            f"a tombstone says that no class belongs to {', '.join(nameless)} any more: assign "
            "the class a new id"
        )
    if body.job in state.jobs:
        raise ConflictError(f"the job {body.job} exists already")
    if record.request_id in state.requests:
        job_before = state.requests[record.request_id]
        raise ConflictError(f"the request {record.request_id} exists already, as {job_before}")
    check_backbone(state, body.backbone)
    job = Job(
        id=body.job,
        subjects=body.subjects,
        seq=record.seq,
        at=record.at,
        actor=record.actor,
        reason=record.reason,
        request_id=record.request_id,
        canary=body.canary,
        batch=body.batch,
        tried_from=record.seq,
    )
    return replace(
        state,
        backbone=body.backbone,
        erasing=state.erasing.union(body.subjects),
        subjects=state.subjects.union(body.subjects),
        # Images may come with this request, so a tombstone must be possible again.
        deleted=state.deleted.with_entries(
            {subject: frozenset() for subject in body.subjects if subject in state.deleted}
        ),
        jobs=state.jobs.with_entry(job.id, job),
        requests=state.requests.with_entry(record.request_id, job.id),
        unguarded=(*state.unguarded, job.id),
    )


def trained(state: State, record: Record, body: Trained) -> State:
    """There is an adapter for a job, or for several that were trained as one task."""
    jobs = _jobs_to_train(state, (body.job, *body.others))
    job, erasing = jobs[0], _erasing(jobs)
    if set(body.subjects) != set(erasing):
        whose = f"{job.id} is" if len(jobs) == 1 else f"{job.id} and {len(jobs) - 1} others are"
        raise ConflictError(f"the adapter's subjects are not those that {whose} to erase")
    check_adapters_known(state, body.stack)
    if body.adapter in body.stack:
        raise ConflictError(f"the adapter {body.adapter} can't be in its own stack")
    known = state.adapters.get(body.adapter)
    if known is not None and (known.jobs, known.stack, known.subjects, known.provisional) != (
        tuple(job.id for job in jobs),
        body.stack,
        erasing,
        body.provisional,
    ):
        raise ConflictError(
            f"the adapter {body.adapter} was recorded before, for {known.job} with another stack "
            "or other subjects"
        )
    entry = AdapterEntry(
        id=body.adapter,
        files=MappingProxyType(dict(body.files)),
        subjects=erasing,
        stack=body.stack,
        report=body.report,
        job=job.id,
        seq=record.seq,
        at=record.at,
        provisional=body.provisional,
        others=body.others,
    )
    changed = {
        job.id: replace(job, state="trained", adapter=entry.id, refusal=None, done_at=None)
        for job in jobs
    }
    return replace(
        state,
        jobs=state.jobs.with_entries(changed),
        adapters=state.adapters.with_entry(entry.id, entry),
    )


def refused(state: State, body: Refused) -> State:
    """A job's training gave nothing to serve. Jobs trained as one task each go on alone."""
    jobs = _jobs_to_train(state, (body.job, *body.others))
    refusal = Refusal(body.stage, body.detail, body.report)
    changed = {
        job.id: replace(job, state="requested", apart=refusal, adapter=None, done_at=None)
        if body.others
        else replace(job, state="refused", refusal=refusal, done_at=None)
        for job in jobs
    }
    return replace(state, jobs=state.jobs.with_entries(changed))


def retried(state: State, record: Record, body: Retried) -> State:
    """A refused or cancelled job waits for its training again."""
    job = job_named(state, body.job)
    if job.state != "refused":
        raise ConflictError(f"{job.id} is {job.state}; only what was refused can be retried")
    _job_to_train(state, job.id)
    adapter = job.adapter
    served = adapter is not None and adapter in state.adapters_in_force(state.active)
    job = replace(
        job,
        state="requested",
        refusal=None,
        # An adapter that is served meanwhile stays; any other is trained again.
        adapter=adapter if served else None,
        retries=(*job.retries, record.request_id),
        tried_from=record.seq,
    )
    return replace(state, jobs=state.jobs.with_entry(job.id, job))


def adapter_to_publish(state: State, job: Job) -> AdapterEntry:
    """The job's adapter, if it is still what its jobs need. Raises: ConflictError."""
    if job.adapter is None or job.state not in ("trained", "published"):
        raise ConflictError(f"{job.id} is {job.state} and has no adapter to publish")
    entry = state.adapters[job.adapter]
    jobs = [state.jobs[name] for name in entry.jobs]
    if entry.subjects != _erasing(jobs):
        raise ConflictError(
            f"the adapter of {job.id} erases subjects that were restored; train it again"
        )
    for other in jobs:
        if other.adapter != entry.id or other.state not in ("trained", "published"):
            raise ConflictError(
                f"the adapter of {job.id} is for {other.id} too, which is {other.state}; "
                "train it again"
            )
    return entry


def check_backbone(state: State, backbone: str) -> None:
    """Raises: ConflictError."""
    if state.backbone not in (None, backbone):
        raise ConflictError(
            f"this registry belongs to the backbone {state.backbone}, found {backbone}; another "
            "backbone needs a registry of its own"
        )


def check_adapters_known(state: State, adapters: Iterable[str]) -> None:
    """Raises: ConflictError."""
    unknown = [adapter for adapter in adapters if adapter not in state.adapters]
    if unknown:
        raise ConflictError(f"no record defines the adapters {', '.join(unknown)}")


def job_named(state: State, name: str) -> Job:
    """Raises: ConflictError."""
    if name not in state.jobs:
        raise ConflictError(f"there is no job {name}")
    return state.jobs[name]


def _job_to_train(state: State, name: str) -> Job:
    """The job, unless its adapter is served and not just provisional. A job may be trained again
    after a refusal or a rollback."""
    job = job_named(state, name)
    if job.state == "restored":
        raise ConflictError(f"all subjects of {name} were restored; there is nothing to train")
    served = state.adapters_in_force(state.active).get(job.adapter or "")
    if served is not None and not served.provisional:
        raise ConflictError(f"the adapter of {name} is being served; there is nothing to train")
    return job


def _jobs_to_train(state: State, names: Sequence[str]) -> list[Job]:
    """Several are trained as one task only if each of them asked for that."""
    jobs = [_job_to_train(state, name) for name in names]
    if len(set(names)) < len(names):
        raise ConflictError(f"a job is named twice: {', '.join(names)}")
    alone = [job.id for job in jobs if not job.batch or job.apart is not None]
    if len(jobs) > 1 and alone:
        raise ConflictError(f"{alone[0]} is to be trained by itself")
    return jobs


def _erasing(jobs: Iterable[Job]) -> tuple[str, ...]:
    return tuple(subject for job in jobs for subject in job.erasing)
