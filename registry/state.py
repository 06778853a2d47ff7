"""What the log adds up to: frozen values that `fold.apply` makes and everyone else reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from registry.bodies import FileRef
from registry.record import GENESIS

Kind = Literal["bare", "guard", "adapter", "rollback"]
JobState = Literal["requested", "trained", "refused", "published", "done"]


@dataclass(frozen=True, slots=True)
class Release:
    """What replicas serve: a stack of adapters (lowest first) and the masked subjects.

    Release 0 is the bare backbone; it is in no record. `to` is set on a rollback alone, `job` on
    the others.
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job's adapter was not accepted; `report` is the digest of a blob, if there is one."""

    stage: str
    detail: str
    report: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """One request for erasure and how far it has come.

    `guarded`: a confirmed release masks all its subjects. "done": a confirmed release serves its
    adapter. A later rollback doesn't undo either fact: what the weights of a release erase is
    `State.subjects_erased_by_weights`.
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


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """A trained adapter: its files, what it erases, and the stack it was trained on top of."""

    id: str
    files: Mapping[str, FileRef]
    subjects: tuple[str, ...]
    stack: tuple[str, ...]
    report: str
    job: str
    seq: int
    at: datetime


BARE = Release(number=0, kind="bare", adapters=(), guard=frozenset())


def _only_bare() -> "MappingProxyType[int, Release]":
    return MappingProxyType({0: BARE})


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the records up to `seq` say. `State()` is that of an empty log.

    `erasing` are the subjects under erasure, `requests` the job of each request id, `unguarded`
    the jobs whose subjects no confirmed release masks yet, in order of arrival.
    """

    seq: int = 0
    head: str = GENESIS
    backbone: str | None = None
    releases: MappingProxyType[int, Release] = field(default_factory=_only_bare)
    active: int = 0
    confirmed: int = 0
    erasing: frozenset[str] = frozenset()
    jobs: MappingProxyType[str, Job] = field(default_factory=lambda: MappingProxyType({}))
    adapters: MappingProxyType[str, AdapterEntry] = field(
        default_factory=lambda: MappingProxyType({})
    )
    requests: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unguarded: tuple[str, ...] = ()

    @property
    def active_release(self) -> Release:
        return self.releases[self.active]

    @property
    def last_release(self) -> int:
        """The highest release number so far; 0 when there is only the bare backbone."""
        return len(self.releases) - 1

    def subjects_erased_by_weights(self, release: int) -> frozenset[str]:
        """The subjects that the adapters of `release` were trained to erase, mask aside."""
        adapters = self.releases[release].adapters
        return frozenset(subject for id in adapters for subject in self.adapters[id].subjects)
