"""What the coordinator is asked by, and what it answers: plain values that cross processes."""

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
    margin: float
    heartbeat: float


@dataclass(frozen=True)
class Pulse:
    """The coordinator's answer to a heartbeat."""

    committed: int
    granted: float
    """Seconds of lease from when the heartbeat was received; 0: not extended."""


@dataclass(frozen=True)
class Wake:
    """What `follow` waits for: a newer committed release, one to prepare, a stop or its end, a
    trial or its end."""

    committed: int
    prepare: int
    suspended: bool = False
    trial: int = 0
    """Names the trial that is on; 0: none."""


@dataclass(frozen=True)
class ReleaseState:
    """How far a release has come on one replica. A failure leaves what is active as it is.

        fetched -> verified -> built -> checked -> resident -> active

    The last stage that was reached, or with `problem` the one that was not, and why.
    """

    release: int
    stage: Stage
    problem: str | None = None


@dataclass(frozen=True)
class Author:
    """Who acts, why, and under which request; all three go into the record."""

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
    """From the durable activation to the acknowledgement."""
    members: dict[str, How]


@dataclass(frozen=True)
class Declined:
    """The coordinator did not do what it was asked; what was active serves on.

    `stage` says where it ended: "stack" (another one is active by now), "prepare", "members",
    "suspended", "resumed", "registry", "coordinator".
    """

    stage: str
    detail: str


@dataclass(frozen=True)
class TrialBegun:
    """A share of the requests is answered by `release` as soon as each replica hears of it."""

    release: int


@dataclass(frozen=True)
class Halt:
    """Nothing is answered from `at` on, until serving is resumed."""

    at: float
    """Unix time, seconds."""
    ms: float
    """From the command to the acknowledgement."""
    members: dict[str, How]


@dataclass(frozen=True)
class Resumption:
    """Serving goes on; `members` hold a lease again."""

    at: float
    members: list[str]


Outcome = Ack | Declined


class MemberView(TypedDict):
    """What is known of one member, for status pages."""

    release: int
    behind: bool
    stages: dict[str, str]
    """Release number -> stage, of the releases that it was asked to build."""
    problem: str | None
