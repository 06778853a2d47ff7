"""The record types about releases: defined, rolled back, activated, confirmed, tried on a share.

As in `bodies`, each type reads only its own fields and refuses any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from registry.schema import DIGEST, NAME, SUBJECT, Fields, Json

ReleaseKind = Literal["guard", "adapter"]
PublishedKind = Literal["guard", "adapter", "compaction"]
MemberOutcome = Literal["confirmed", "lease_expired"]
MOST_PERCENT = 99


@dataclass(frozen=True, slots=True)
class Published:
    """A release is defined, so that replicas can prepare it. It is not served yet.

    It belongs to a `job`, except for a compaction, which changes no answer.
    """

    release: int
    kind: PublishedKind
    backbone: str
    adapters: tuple[str, ...]
    guard: tuple[str, ...]
    parent: int
    job: str | None

    def to_json(self) -> dict[str, Json]:
        return {
            "release": self.release,
            "kind": self.kind,
            "backbone": self.backbone,
            "adapters": list(self.adapters),
            "guard": list(self.guard),
            "parent": self.parent,
            "job": self.job,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Published":
        kind = cast(PublishedKind, fields.choice("kind", get_args(PublishedKind)))
        jobless = fields.is_null("job")
        if jobless != (kind == "compaction"):
            expected = "null" if kind == "compaction" else "the id of a job"
            fields.refuse("job", f"expected {expected} for a release of kind {kind}")
        return cls(
            release=fields.integer("release", at_least=1),
            kind=kind,
            backbone=fields.text("backbone", DIGEST),
            adapters=fields.texts("adapters", DIGEST),
            guard=fields.texts("guard", SUBJECT, in_order=True),
            parent=fields.integer("parent", at_least=0),
            job=None if jobless else fields.text("job", NAME),
        )


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A release is defined with the adapters of the earlier release `to` (0: none)."""

    release: int
    to: int
    backbone: str
    adapters: tuple[str, ...]
    guard: tuple[str, ...]
    parent: int

    def to_json(self) -> dict[str, Json]:
        return {
            "release": self.release,
            "to": self.to,
            "backbone": self.backbone,
            "adapters": list(self.adapters),
            "guard": list(self.guard),
            "parent": self.parent,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "RolledBack":
        return cls(
            release=fields.integer("release", at_least=1),
            to=fields.integer("to", at_least=0),
            backbone=fields.text("backbone", DIGEST),
            adapters=fields.texts("adapters", DIGEST),
            guard=fields.texts("guard", SUBJECT, in_order=True),
            parent=fields.integer("parent", at_least=0),
        )


@dataclass(frozen=True, slots=True)
class Activated:
    """Replicas serve the release from here on."""

    release: int

    def to_json(self) -> dict[str, Json]:
        return {"release": self.release}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Activated":
        return cls(release=fields.integer("release", at_least=1))


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Every member serves the release or can serve nothing, `ms` milliseconds after the command."""

    release: int
    members: Mapping[str, MemberOutcome]
    ms: float

    def to_json(self) -> dict[str, Json]:
        return {"release": self.release, "members": dict(self.members), "ms": self.ms}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Confirmed":
        release = fields.integer("release", at_least=1)
        members = fields.mapping("members")
        for name, outcome in members.items():
            if not NAME.fullmatch(name):
                fields.refuse("members", f"expected ids like {NAME.pattern}, found {name!r}")
            if outcome not in get_args(MemberOutcome):
                fields.refuse(
                    f"members.{name}",
                    f"expected one of {', '.join(get_args(MemberOutcome))}, found {outcome!r}",
                )
        return cls(release=release, members=members, ms=fields.number("ms", at_least=0.0))


@dataclass(frozen=True, slots=True)
class Canary:
    """A trial: the release answers `percent` of the requests. 0 ends it; `detail` says why."""

    release: int
    percent: int
    detail: str

    def to_json(self) -> dict[str, Json]:
        return {"release": self.release, "percent": self.percent, "detail": self.detail}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Canary":
        return cls(
            release=fields.integer("release", at_least=1),
            percent=percentage(fields, "percent", at_least=0),
            detail=fields.free_text("detail", at_most=2000),
        )


def percentage(fields: Fields, name: str, *, at_least: int = 1) -> int:
    """A percentage that leaves some requests for the active release. Raises: FormatError."""
    percent = fields.integer(name, at_least=at_least)
    if percent > MOST_PERCENT:
        fields.refuse(name, f"expected at most {MOST_PERCENT}, found {percent}")
    return percent
