"""The arguments and answers of the coordinator's methods: plain values that cross processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

How = Literal["confirmed", "lease_expired"]
CONFIRMED: How = "confirmed"
LEASE_EXPIRED: How = "lease_expired"
Stage = Literal["fetched", "verified", "built", "checked", "resident", "active"]


@dataclass(frozen=True)
class Terms:
    """Lease terms, in seconds."""

    seconds: float
    """How long a lease lasts after a heartbeat."""
    margin: float
    """How much earlier a member ends its lease than the coordinator does."""
    heartbeat: float
    """Between two heartbeats."""


@dataclass(frozen=True)
class Pulse:
    """The coordinator's answer to a heartbeat."""

    committed: int
    granted: float
    """Seconds of lease from when the heartbeat was received; 0: the lease was not extended."""


@dataclass(frozen=True)
class Wake:
    """What a member has to act on. `follow` returns when any of it changes."""

    committed: int
    prepare: int
    """The newest release that members were asked to build; -1: none."""
    suspended: bool = False
    trial: int = 0
    """The trial that is on, as the sequence number of the record that began it; 0: none."""


@dataclass(frozen=True)
class ReleaseState:
    """How far one replica is with a release. A failure doesn't change what is active.

        fetched -> verified -> built -> checked -> resident -> active

    `stage` is the last one reached; with a `problem`, the one that failed.
    """

    release: int
    stage: Stage
    problem: str | None = None


@dataclass(frozen=True)
class Author:
    """Who acts, why, and for which request; all three go into the record."""

    actor: str
    reason: str
    request_id: str


@dataclass(frozen=True)
class Ack:
    """No response to a request sent from `at` on comes from a release older than `release`."""

    release: int
    at: float
    """Unix time, seconds."""
    ms: float
    """Milliseconds from the durable activation to the acknowledgement."""
    members: dict[str, How]


@dataclass(frozen=True)
class Declined:
    """The coordinator did not do what it was asked; what was active is still served.

    `stage` says where it stopped: "stack" (another stack is active by now), "prepare" (a member
    could not build the release), "members" (no replica holds a lease), "suspended", "resumed",
    "registry" (the ledger could not be written), "coordinator" (there is none).
    """

    stage: str
    detail: str


@dataclass(frozen=True)
class TrialBegun:
    """The trial is recorded: `release` answers its share of the requests on each replica as soon as
    that replica hears of it."""

    release: int


@dataclass(frozen=True)
class Halt:
    """No prediction is answered from `at` on, until serving is resumed."""

    at: float
    """Unix time, seconds."""
    ms: float
    """Milliseconds from the command to the acknowledgement."""
    members: dict[str, How]


@dataclass(frozen=True)
class Resumption:
    """Serving goes on."""

    at: float
    """Unix time, seconds."""
    members: list[str]
    """Those that hold a lease again."""


Outcome = Ack | Declined


class MemberView(TypedDict):
    """What is known of one member, for status pages."""

    release: int
    behind: bool
    stages: dict[str, str]
    """Release number -> stage, for the releases that it was asked to build."""
    problem: str | None
