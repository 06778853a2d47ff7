"""What the coordinator is asked by, and what it answers: plain values that cross processes."""

from __future__ import annotations

from dataclasses import dataclass

from serving.coordination.membership import How


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
class Refusal:
    """A release was not activated; the active one serves on."""

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


Outcome = Ack | Refusal
