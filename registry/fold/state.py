"""What the log adds up to: frozen values that `rules.apply` makes and everyone else reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from registry.fold.persistent_map import PersistentMap
from registry.records.declarations import Deletable
from registry.records.files import FileRef
from registry.records.record import GENESIS

Kind = Literal["bare", "guard", "adapter", "compaction", "rollback"]
JobState = Literal["requested", "trained", "refused", "published", "done", "restored"]


@dataclass(frozen=True, slots=True)
class Release:
    """What replicas serve: a stack of adapters (lowest first) and the masked subjects.

    Release 0 is the bare backbone; no record defines it. Only a rollback has `to`; guard and
    adapter releases have a `job`.
    """

    number: int
    kind: Kind
    adapters: tuple[str, ...]
    guard: frozenset[str]
    parent: int | None = None
    job: str | None = None
    to: int | None = None
    seq: int = 0
    at: datetime | None = None
    actor: str = ""
    request_id: str = ""
    activated_at: datetime | None = None
    confirmed_at: datetime | None = None
    confirmed_ms: float | None = None
    returned: str | None = None
    """Why its trial was ended, if it was."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job's adapter was not accepted; `report` is the digest of a blob, if there is one."""

    stage: str
    detail: str
    report: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """One request for erasure and how far it has come.

    `guarded`: a confirmed release masks all its subjects. State "done": a confirmed release serves
    its adapter. A later rollback changes neither; `State.subjects_erased_by_weights` says what the
    weights of a release erase. State "restored": the erasure of all its subjects has ended.
    `restored`: the subjects whose erasure has ended. `apart`: why it is trained alone although it
    has `batch`. `retries`: the request ids of its retries. `tried_from`: the number of the record
    with which its present try began.
    """

    id: str
    subjects: tuple[str, ...]
    seq: int
    at: datetime
    actor: str
    reason: str
    request_id: str
    state: JobState = "requested"
    guarded: bool = False
    adapter: str | None = None
    release: int | None = None
    refusal: Refusal | None = None
    done_at: datetime | None = None
    restored: frozenset[str] = frozenset()
    restored_at: datetime | None = None
    canary: int | None = None
    """Percentage of requests on which its adapter is tried first."""
    batch: bool = False
    apart: Refusal | None = None
    retries: tuple[str, ...] = ()
    tried_from: int = 0

    @property
    def erasing(self) -> tuple[str, ...]:
        """Its subjects that are still under erasure: what its adapter must erase."""
        return tuple(subject for subject in self.subjects if subject not in self.restored)


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter: its files, what it erases, and the stack that it belongs on top of.

    It was trained for a `job`, and for `others` as one task with it, or it replaces the adapters
    that it `folds` (lowest first).
    """

    id: str
    files: Mapping[str, FileRef]
    subjects: tuple[str, ...]
    stack: tuple[str, ...]
    report: str
    job: str | None
    seq: int
    at: datetime
    folds: tuple[str, ...] = ()
    provisional: bool = False
    """Served until the job has another adapter, which takes its place."""
    others: tuple[str, ...] = ()

    @property
    def jobs(self) -> tuple[str, ...]:
        """All jobs that it was trained for."""
        return () if self.job is None else (self.job, *self.others)


@dataclass(frozen=True, slots=True)
class Seal:
    """The end of a registry: its stack went into the backbone with this fingerprint."""

    release: int
    backbone: str
    seq: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Trial:
    """`release`, which is not active, answers `percent` of the requests."""

    release: int
    percent: int
    seq: int
    at: datetime


BARE = Release(number=0, kind="bare", adapters=(), guard=frozenset())


def _only_bare() -> PersistentMap[int, Release]:
    return PersistentMap({0: BARE})


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the records up to `seq` say. `State()` is that of an empty log.

    `erasing`: the subjects under erasure. `requests`: the job of each request id. `unguarded`: the
    jobs whose subjects no confirmed release masks yet, in order of arrival. `subjects`: all that
    were ever named. `held`: those under a legal hold. `deleted`: what tombstones say is gone.
    `suspended`: no release may be served.
    """

    seq: int = 0
    head: str = GENESIS
    backbone: str | None = None
    releases: PersistentMap[int, Release] = field(default_factory=_only_bare)
    active: int = 0
    confirmed: int = 0
    erasing: frozenset[str] = frozenset()
    jobs: PersistentMap[str, Job] = field(default_factory=PersistentMap)
    adapters: PersistentMap[str, AdapterEntry] = field(default_factory=PersistentMap)
    requests: PersistentMap[str, str] = field(default_factory=PersistentMap)
    unguarded: tuple[str, ...] = ()
    subjects: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    deleted: PersistentMap[str, frozenset[Deletable]] = field(default_factory=PersistentMap)
    suspended: bool = False
    seal: Seal | None = None
    trial: Trial | None = None

    @property
    def active_release(self) -> Release:
        return self.releases[self.active]

    @property
    def last_release(self) -> int:
        """The highest release number so far; 0 when there is only the bare backbone."""
        return len(self.releases) - 1

    def subjects_erased_by_weights(self, release: int) -> frozenset[str]:
        """The subjects that the adapters of `release` were trained to erase, masked or not."""
        adapters = self.releases[release].adapters
        return frozenset(subject for id in adapters for subject in self.adapters[id].subjects)

    def subjects_forgotten(self, release: int) -> frozenset[str]:
        """The subjects that the weights of `release` have forgotten: without those for which only a
        provisional adapter stands in, a feature edit that leaves the weights as they are."""
        trained = [
            entry
            for entry in self.adapters_in_force(release).values()
            if not entry.provisional and not entry.folds
        ]
        return frozenset(subject for entry in trained for subject in entry.subjects)

    def stack_for(self, job: str) -> tuple[str, ...]:
        """The stack for an adapter of `job`: the active one, without the job's provisional one."""
        adapters = self.active_release.adapters
        if adapters and (top := self.adapters[adapters[-1]]).provisional and top.job == job:
            return adapters[:-1]
        return adapters

    def adapters_in_force(self, release: int) -> dict[str, AdapterEntry]:
        """The adapters of `release`, and those that they fold, by id."""
        found: dict[str, AdapterEntry] = {}
        left = self.releases[release].adapters
        while left:
            entries = {adapter: self.adapters[adapter] for adapter in left}
            found |= entries
            left = tuple(below for entry in entries.values() for below in entry.folds)
        return found

    @property
    def subjects_in_use(self) -> frozenset[str]:
        """The subjects whose class replicas must know to serve the active release."""
        if self.seal is not None:
            return frozenset()
        erased = self.subjects_erased_by_weights(self.active)
        return self.erasing | self.active_release.guard | erased

    @property
    def subjects_to_unmask(self) -> frozenset[str]:
        """The restored subjects that the active release still masks. Another release ends that: a
        rollback to `release_without` them or, if they were only masked, a guard release.
        """
        return self.active_release.guard - self.erasing

    def release_without(self, subjects: frozenset[str]) -> int:
        """The newest release that was ever active and whose weights erase none of `subjects`."""
        return max(
            number
            for number, release in self.releases.items()
            if (number == 0 or release.activated_at is not None)
            and not subjects & self.subjects_erased_by_weights(number)
        )
