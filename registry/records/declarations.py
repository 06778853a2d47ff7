"""The record types by which people declare something about subjects or the whole registry.

They change no weights: how an erasure ends (restored, tombstone, sealed), that a training is wanted
again (retried), what must be kept (legal_hold), and that nothing may be served (suspended).
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from registry.schema import DIGEST, NAME, SUBJECT, Fields, Json

Deletable = Literal["images", "prototypes", "subject_map"]
HoldAct = Literal["placed", "lifted"]
ServingState = Literal["suspended", "resumed"]


@dataclass(frozen=True, slots=True)
class Restored:
    """The erasure of the subjects is over: releases may be defined that don't mask them."""

    subjects: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        return {"subjects": list(self.subjects)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Restored":
        return cls(subjects=fields.texts("subjects", SUBJECT, at_least=1))


@dataclass(frozen=True, slots=True)
class Retried:
    """A refused or cancelled job is to be trained again."""

    job: str

    def to_json(self) -> dict[str, Json]:
        return {"job": self.job}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Retried":
        return cls(job=fields.text("job", NAME))


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The subjects' deletable objects of these kinds were deleted."""

    subjects: tuple[str, ...]
    objects: tuple[Deletable, ...]

    def to_json(self) -> dict[str, Json]:
        return {"subjects": list(self.subjects), "objects": list(self.objects)}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Tombstone":
        return cls(
            subjects=fields.texts("subjects", SUBJECT, at_least=1),
            objects=cast(
                tuple[Deletable, ...],
                fields.choices("objects", get_args(Deletable), at_least=1),
            ),
        )


@dataclass(frozen=True, slots=True)
class LegalHold:
    """The subjects' deletable objects must be kept ("placed"), or no longer ("lifted")."""

    subjects: tuple[str, ...]
    act: HoldAct

    def to_json(self) -> dict[str, Json]:
        return {"subjects": list(self.subjects), "act": self.act}

    @classmethod
    def from_fields(cls, fields: Fields) -> "LegalHold":
        return cls(
            subjects=fields.texts("subjects", SUBJECT, at_least=1),
            act=cast(HoldAct, fields.choice("act", get_args(HoldAct))),
        )


@dataclass(frozen=True, slots=True)
class Suspended:
    """From here on no release may be served ("suspended"), or one may be again ("resumed")."""

    state: ServingState

    def to_json(self) -> dict[str, Json]:
        return {"state": self.state}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Suspended":
        return cls(state=cast(ServingState, fields.choice("state", get_args(ServingState))))


@dataclass(frozen=True, slots=True)
class Sealed:
    """The adapters of `release` were folded into a new backbone; this registry's work is over."""

    release: int
    backbone: str

    def to_json(self) -> dict[str, Json]:
        return {"release": self.release, "backbone": self.backbone}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Sealed":
        return cls(
            release=fields.integer("release", at_least=1), backbone=fields.text("backbone", DIGEST)
        )
