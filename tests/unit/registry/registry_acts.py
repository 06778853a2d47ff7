"""Short calls for the functions of `registry.publish`, for tests of the state that results."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from registry.fold.state import AdapterEntry, Job, Release, State
from registry.log.ledger import Ledger, log_key
from registry.publish.compaction import publish_compaction, record_compacted
from registry.publish.declarations import (
    record_deletion,
    record_hold,
    record_seal,
    record_suspension,
    restore_subjects,
    write_note,
)
from registry.publish.jobs import record_trained, refuse_job, request_forget, retry_job
from registry.publish.releases import (
    activate_release,
    begin_trial,
    confirm_release,
    end_trial,
    publish_release,
    roll_back,
)
from registry.records.bodies import SIGNED_BY, TYPE_OF, Body
from registry.records.declarations import Deletable, HoldAct, ServingState
from registry.records.record import Record, digest_of, seal_record
from registry.records.releases import ReleaseKind
from registry.signing.keys import Role, Signer
from registry.store.contract import Store

BACKBONE = f"sha256:{'b' * 64}"
NOON = datetime(2026, 11, 20, 12, 0, 0, 123000, tzinfo=UTC)


def subject(number: int) -> str:
    return hashlib.sha256(f"subject {number}".encode()).hexdigest()[:32]


@dataclass
class Acts:
    """Writes records to a ledger, signed with the right key. Each has a new request id."""

    ledger: Ledger
    signers: dict[Role, Signer]
    requests: int = 0

    @property
    def state(self) -> State:
        return self.ledger.state

    def origin(self) -> dict[str, str]:
        self.requests += 1
        return {"actor": "ops", "reason": "a test", "request_id": f"request-{self.requests}"}

    def forget(self, *numbers: int, canary: int | None = None, batch: bool = False) -> Job:
        return request_forget(
            self.ledger,
            self.signers["operator"],
            subjects=[subject(number) for number in numbers],
            backbone=BACKBONE,
            canary=canary,
            batch=batch,
            **self.origin(),
        )

    def train(
        self,
        job: str,
        *others: str,
        stack: tuple[str, ...] | None = None,
        provisional: bool = False,
    ) -> AdapterEntry:
        if stack is None:
            stack = self.state.stack_for(job)
        known = [self.state.jobs[name] for name in (job, *others) if name in self.state.jobs]
        erasing = sorted(subject for each in known for subject in each.erasing)
        return record_trained(
            self.ledger,
            self.signers["publisher"],
            job=job,
            files={
                "adapter.bin": f"{job} on {stack}{', for now' * provisional}".encode(),
                "forget.json": json.dumps(erasing).encode(),
            },
            stack=stack,
            report=b"report",
            provisional=provisional,
            others=others,
            **self.origin(),
        )

    def refuse(self, job: str, *others: str, stage: str = "gates") -> Job:
        return refuse_job(
            self.ledger,
            self.signers["publisher"],
            job=job,
            stage=stage,
            detail="retained classes lost 3 points",
            report=b"bad report",
            others=others,
            **self.origin(),
        )

    def retry(self, job: str) -> Job:
        return retry_job(self.ledger, self.signers["operator"], job=job, **self.origin())

    def publish(self, kind: ReleaseKind, job: str) -> Release:
        return publish_release(
            self.ledger, self.signers["publisher"], kind=kind, job=job, **self.origin()
        )

    def roll_back(self, to: int) -> Release:
        return roll_back(self.ledger, self.signers["operator"], to=to, **self.origin())

    def activate(self, release: int) -> Release:
        return activate_release(
            self.ledger, self.signers["operator"], release=release, **self.origin()
        )

    def confirm(self, release: int) -> Release:
        return confirm_release(
            self.ledger,
            self.signers["operator"],
            release=release,
            members={"replica-1": "confirmed", "replica-2": "lease_expired"},
            ms=12.5,
            **self.origin(),
        )

    def try_out(self, release: int, *, percent: int = 10) -> State:
        return begin_trial(
            self.ledger,
            self.signers["operator"],
            release=release,
            percent=percent,
            **self.origin(),
        )

    def take_off(self, release: int) -> State:
        return end_trial(
            self.ledger,
            self.signers["operator"],
            release=release,
            detail="it leaks",
            **self.origin(),
        )

    def note(self, text: str) -> Record:
        return write_note(self.ledger, self.signers["operator"], text=text, **self.origin())

    def compact(self, *, folds: tuple[str, ...] | None = None) -> AdapterEntry:
        if folds is None:
            folds = self.state.active_release.adapters
        return record_compacted(
            self.ledger,
            self.signers["publisher"],
            files={"adapter.bin": f"all of {folds}".encode(), "forget.json": b"{}"},
            folds=folds,
            report=b"same outputs",
            **self.origin(),
        )

    def publish_compaction(self, adapter: str) -> Release:
        return publish_compaction(
            self.ledger, self.signers["publisher"], adapter=adapter, **self.origin()
        )

    def restore(self, *numbers: int) -> State:
        return restore_subjects(
            self.ledger,
            self.signers["operator"],
            subjects=[subject(number) for number in numbers],
            **self.origin(),
        )

    def bury(
        self, *numbers: int, objects: tuple[Deletable, ...], delete: Callable[[], None]
    ) -> State:
        return record_deletion(
            self.ledger,
            self.signers["eraser"],
            subjects=[subject(number) for number in numbers],
            objects=objects,
            delete=delete,
            **self.origin(),
        )

    def hold(self, *numbers: int, act: HoldAct = "placed") -> State:
        return record_hold(
            self.ledger,
            self.signers["operator"],
            subjects=[subject(number) for number in numbers],
            act=act,
            **self.origin(),
        )

    def suspend(self, state: ServingState = "suspended") -> State:
        return record_suspension(
            self.ledger, self.signers["operator"], state=state, **self.origin()
        )

    def seal(self, release: int, backbone: str) -> State:
        return record_seal(
            self.ledger,
            self.signers["operator"],
            release=release,
            backbone=backbone,
            **self.origin(),
        )

    def serve(self, release: int) -> Release:
        self.activate(release)
        return self.confirm(release)

    def erase(self, *numbers: int) -> Job:
        """Do all steps of an erasure: request, guard, train, publish, activate, confirm."""
        job = self.forget(*numbers)
        self.serve(self.publish("guard", job.id).number)
        self.train(job.id)
        self.serve(self.publish("adapter", job.id).number)
        return self.state.jobs[job.id]

    def force(self, store: Store, body: Body) -> str:
        """Store a correctly signed next record without asking the fold's rules; return its key."""
        record = record_after(self.state, body)
        key = log_key(record.seq)
        store.create(key, seal_record(record, self.signers[SIGNED_BY[TYPE_OF[type(body)]]]))
        return key


def record_after(state: State, body: Body, *, at: datetime = NOON) -> Record:
    return Record(
        seq=state.seq + 1,
        prev=state.head,
        at=at,
        actor="ops",
        reason="a test",
        request_id=f"forced-{state.seq + 1}",
        body=body,
    )


def after(record: Record, *, signer: Signer) -> Record:
    """A copy of `record` as its own successor: with the next number, chained to it."""
    return replace(record, seq=record.seq + 1, prev=digest_of(seal_record(record, signer)))
