"""A state as JSON and back, exactly: what a checkpoint holds.

Guards and stacks are written once and named by their place, because thousands of releases share
a few. Reading expects bytes that this package wrote and whose digest was checked. It is fast
rather than strict, and raises KeyError, TypeError, ValueError or IndexError for anything else.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from registry.fold.persistent_map import PersistentMap
from registry.fold.state import AdapterEntry, Job, Refusal, Release, Seal, State, Trial
from registry.records.files import FileRef
from registry.schema import Json, encode_time


class _Table:
    """Distinct values in the order of their first use."""

    def __init__(self) -> None:
        self.rows: list[Json] = []
        self._places: dict[object, int] = {}

    def place(self, value: frozenset[str] | tuple[str, ...]) -> int:
        if value not in self._places:
            self._places[value] = len(self.rows)
            self.rows.append([*(sorted(value) if isinstance(value, frozenset) else value)])
        return self._places[value]


def state_to_json(state: State) -> dict[str, Json]:
    guards, stacks = _Table(), _Table()
    releases: list[Json] = [
        _release_row(release, guards=guards, stacks=stacks)
        for number, release in state.releases.items()
        if number > 0
    ]
    adapters: list[Json] = [_adapter_row(entry, stacks) for entry in state.adapters.values()]
    seal, trial = state.seal, state.trial
    return {
        "seq": state.seq,
        "head": state.head,
        "backbone": state.backbone,
        "active": state.active,
        "confirmed": state.confirmed,
        "erasing": guards.place(state.erasing),
        "subjects": guards.place(state.subjects),
        "held": guards.place(state.held),
        "deleted": {subject: [*sorted(kinds)] for subject, kinds in state.deleted.items()},
        "suspended": state.suspended,
        "seal": None if seal is None else [seal.release, seal.backbone, seal.seq, _text(seal.at)],
        "canary": None
        if trial is None
        else [trial.release, trial.percent, trial.seq, _text(trial.at)],
        "requests": dict(state.requests),
        "unguarded": list(state.unguarded),
        "jobs": [_job_row(job) for job in state.jobs.values()],
        "releases": releases,
        "adapters": adapters,
        "guards": guards.rows,
        "stacks": stacks.rows,
    }


def state_from_json(value: Mapping[str, Any]) -> State:
    guards = [frozenset(row) for row in value["guards"]]
    stacks = [tuple(row) for row in value["stacks"]]
    releases = dict(State().releases)
    for row in value["releases"]:
        number, kind, stack, guard, parent, job, to, seq, at, actor, request, *ends = row
        activated_at, confirmed_at, ms, returned = ends
        releases[number] = Release(
            number=number,
            kind=kind,
            adapters=stacks[stack],
            guard=guards[guard],
            parent=parent,
            job=job,
            to=to,
            seq=seq,
            at=_time(at),
            actor=actor,
            request_id=request,
            activated_at=_time(activated_at),
            confirmed_at=_time(confirmed_at),
            confirmed_ms=ms,
            returned=returned,
        )
    seal, trial = value["seal"], value["canary"]
    return State(
        seq=value["seq"],
        head=value["head"],
        backbone=value["backbone"],
        releases=PersistentMap(releases),
        active=value["active"],
        confirmed=value["confirmed"],
        erasing=guards[value["erasing"]],
        jobs=PersistentMap({row[0]: _job(row) for row in value["jobs"]}),
        adapters=PersistentMap({row[0]: _adapter(row, stacks) for row in value["adapters"]}),
        requests=PersistentMap(value["requests"]),
        unguarded=tuple(value["unguarded"]),
        subjects=guards[value["subjects"]],
        held=guards[value["held"]],
        deleted=PersistentMap(
            {subject: frozenset(kinds) for subject, kinds in value["deleted"].items()}
        ),
        suspended=value["suspended"],
        seal=None if seal is None else _seal(*seal),
        trial=None if trial is None else _trial(*trial),
    )


def _release_row(release: Release, *, guards: _Table, stacks: _Table) -> Json:
    return [
        release.number,
        release.kind,
        stacks.place(release.adapters),
        guards.place(release.guard),
        release.parent,
        release.job,
        release.to,
        release.seq,
        _text(release.at),
        release.actor,
        release.request_id,
        _text(release.activated_at),
        _text(release.confirmed_at),
        release.confirmed_ms,
        release.returned,
    ]


def _job_row(job: Job) -> Json:
    return [
        job.id,
        list(job.subjects),
        job.seq,
        _text(job.at),
        job.actor,
        job.reason,
        job.request_id,
        job.state,
        job.guarded,
        job.adapter,
        job.release,
        _refusal_row(job.refusal),
        _text(job.done_at),
        _sorted(job.restored),
        _text(job.restored_at),
        job.canary,
        job.batch,
        _refusal_row(job.apart),
        list(job.retries),
        job.tried_from,
    ]


def _job(row: list[Any]) -> Job:
    id, subjects, seq, at, actor, reason, request, state, guarded, adapter, release, *ends = row
    refusal, done_at, restored, restored_at, canary, batch, apart, retries, tried_from = ends
    return Job(
        id=id,
        subjects=tuple(subjects),
        seq=seq,
        at=datetime.fromisoformat(at),
        actor=actor,
        reason=reason,
        request_id=request,
        state=state,
        guarded=guarded,
        adapter=adapter,
        release=release,
        refusal=None if refusal is None else Refusal(*refusal),
        done_at=_time(done_at),
        restored=frozenset(restored),
        restored_at=_time(restored_at),
        canary=canary,
        batch=batch,
        apart=None if apart is None else Refusal(*apart),
        retries=tuple(retries),
        tried_from=tried_from,
    )


def _refusal_row(refusal: Refusal | None) -> Json:
    return None if refusal is None else [refusal.stage, refusal.detail, refusal.report]


def _adapter_row(entry: AdapterEntry, stacks: _Table) -> Json:
    files: dict[str, Json] = {name: [file.digest, file.size] for name, file in entry.files.items()}
    return [
        entry.id,
        files,
        list(entry.subjects),
        stacks.place(entry.stack),
        entry.report,
        entry.job,
        entry.seq,
        _text(entry.at),
        stacks.place(entry.folds),
        entry.provisional,
        list(entry.others),
    ]


def _adapter(row: list[Any], stacks: list[tuple[str, ...]]) -> AdapterEntry:
    id, files, subjects, stack, report, job, seq, at, folds, provisional, others = row
    return AdapterEntry(
        id=id,
        files=MappingProxyType({name: FileRef(*file) for name, file in files.items()}),
        subjects=tuple(subjects),
        stack=stacks[stack],
        report=report,
        job=job,
        seq=seq,
        at=datetime.fromisoformat(at),
        folds=stacks[folds],
        provisional=provisional,
        others=tuple(others),
    )


def _seal(release: int, backbone: str, seq: int, at: str) -> Seal:
    return Seal(release=release, backbone=backbone, seq=seq, at=datetime.fromisoformat(at))


def _trial(release: int, percent: int, seq: int, at: str) -> Trial:
    return Trial(release=release, percent=percent, seq=seq, at=datetime.fromisoformat(at))


def _sorted(names: Iterable[str]) -> Json:
    return [*sorted(names)]


def _text(at: datetime | None) -> str | None:
    return None if at is None else encode_time(at)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
