"""What a record can say: one frozen dataclass per record type, with its strict JSON form.

Each type reads only its own fields and refuses any other. Those about releases are in `releases`,
those by which people declare something in `declarations`. Nothing here names a class: subjects are
opaque ids, and texts are for reasons, not for data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.files import FileRef, adapter_id, files_from_fields, files_to_json
from registry.records.releases import (
    Activated,
    Canary,
    Confirmed,
    Published,
    RolledBack,
    percentage,
)
from registry.schema import DIGEST, NAME, SUBJECT, Fields, Json
from registry.signing.keys import Role


@dataclass(frozen=True, slots=True)
class Requested:
    """An erasure is asked for: from here on the subjects are under erasure.

    `canary`: the percentage of requests on which its adapter is tried first. `batch`: it may be
    trained together with other jobs that have `batch`.
    """

    job: str
    subjects: tuple[str, ...]
    backbone: str
    canary: int | None = None
    batch: bool = False

    def to_json(self) -> dict[str, Json]:
        body: dict[str, Json] = {
            "job": self.job,
            "subjects": list(self.subjects),
            "backbone": self.backbone,
        }
        if self.canary is not None:
            body["canary"] = self.canary
        return {**body, "batch": True} if self.batch else body

    @classmethod
    def from_fields(cls, fields: Fields) -> "Requested":
        return cls(
            job=fields.text("job", NAME),
            subjects=fields.texts("subjects", SUBJECT, at_least=1),
            backbone=fields.text("backbone", DIGEST),
            canary=percentage(fields, "canary") if fields.holds("canary") else None,
            batch=fields.mark("batch"),
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A job's adapter exists, trained on top of the adapters in `stack` (lowest first).

    A `provisional` adapter (a closed form) is served until the job has another one. `others`: more
    jobs that this adapter is for; they were trained as one task.
    """

    job: str
    adapter: str
    files: Mapping[str, FileRef]
    subjects: tuple[str, ...]
    stack: tuple[str, ...]
    report: str
    provisional: bool = False
    others: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        body: dict[str, Json] = {
            "job": self.job,
            "adapter": self.adapter,
            "files": files_to_json(self.files),
            "subjects": list(self.subjects),
            "stack": list(self.stack),
            "report": self.report,
            **_others(self.others),
        }
        return {**body, "provisional": True} if self.provisional else body

    @classmethod
    def from_fields(cls, fields: Fields) -> "Trained":
        body = cls(
            job=fields.text("job", NAME),
            adapter=fields.text("adapter", DIGEST),
            files=files_from_fields(fields, "files"),
            subjects=fields.texts("subjects", SUBJECT, at_least=1),
            stack=fields.texts("stack", DIGEST),
            report=fields.text("report", DIGEST),
            provisional=fields.mark("provisional"),
            others=_others_of(fields),
        )
        _check_adapter_id(fields, body.adapter, body.files)
        return body


@dataclass(frozen=True, slots=True)
class Compacted:
    """One adapter was made that does the same as the stack `folds` (lowest first)."""

    adapter: str
    files: Mapping[str, FileRef]
    folds: tuple[str, ...]
    subjects: tuple[str, ...]
    report: str

    def to_json(self) -> dict[str, Json]:
        return {
            "adapter": self.adapter,
            "files": files_to_json(self.files),
            "folds": list(self.folds),
            "subjects": list(self.subjects),
            "report": self.report,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Compacted":
        body = cls(
            adapter=fields.text("adapter", DIGEST),
            files=files_from_fields(fields, "files"),
            folds=fields.texts("folds", DIGEST, at_least=2),
            subjects=fields.texts("subjects", SUBJECT, at_least=1),
            report=fields.text("report", DIGEST),
        )
        _check_adapter_id(fields, body.adapter, body.files)
        return body


@dataclass(frozen=True, slots=True)
class Refused:
    """A job's adapter was not accepted, at `stage` (a gate, the training, a self-check).

    `others`: more jobs that it was for. Then only training them together is refused: each job goes
    on alone.
    """

    job: str
    stage: str
    detail: str
    report: str | None
    others: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        return {
            "job": self.job,
            "stage": self.stage,
            "detail": self.detail,
            "report": self.report,
            **_others(self.others),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "Refused":
        return cls(
            job=fields.text("job", NAME),
            stage=fields.text("stage", NAME),
            detail=fields.free_text("detail", at_most=2000),
            report=None if fields.is_null("report") else fields.text("report", DIGEST),
            others=_others_of(fields),
        )


@dataclass(frozen=True, slots=True)
class Note:
    """A remark for those who read the log; it changes nothing."""

    text: str

    def to_json(self) -> dict[str, Json]:
        return {"text": self.text}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Note":
        return cls(text=fields.free_text("text", at_least=1, at_most=2000))


Body: TypeAlias = (
    Requested
    | Trained
    | Compacted
    | Refused
    | Published
    | RolledBack
    | Activated
    | Confirmed
    | Canary
    | Retried
    | Restored
    | Tombstone
    | LegalHold
    | Suspended
    | Sealed
    | Note
)

BODIES: Mapping[str, type[Body]] = {
    "requested": Requested,
    "trained": Trained,
    "compacted": Compacted,
    "refused": Refused,
    "published": Published,
    "rolled_back": RolledBack,
    "activated": Activated,
    "confirmed": Confirmed,
    "canary": Canary,
    "retried": Retried,
    "restored": Restored,
    "tombstone": Tombstone,
    "legal_hold": LegalHold,
    "suspended": Suspended,
    "sealed": Sealed,
    "note": Note,
}

TYPE_OF: Mapping[type[Body], str] = {body: name for name, body in BODIES.items()}

SIGNED_BY: Mapping[str, Role] = {
    "requested": "operator",
    "trained": "publisher",
    "compacted": "publisher",
    "refused": "publisher",
    "published": "publisher",
    "rolled_back": "operator",
    "activated": "operator",
    "confirmed": "operator",
    "canary": "operator",
    "retried": "operator",
    "restored": "operator",
    "tombstone": "eraser",
    "legal_hold": "operator",
    "suspended": "operator",
    "sealed": "operator",
    "note": "operator",
}


def blobs_of(body: Body) -> dict[str, int | None]:
    """The digests of the blobs that a record names, and their sizes if the record has them."""
    match body:
        case Trained() | Compacted():
            return {body.report: None} | {file.digest: file.size for file in body.files.values()}
        case Refused() if body.report is not None:
            return {body.report: None}
    return {}


def _check_adapter_id(fields: Fields, adapter: str, files: Mapping[str, FileRef]) -> None:
    expected = adapter_id(files)
    if adapter != expected:
        fields.refuse("adapter", f"its files make it {expected}, found {adapter}")


def _others(jobs: tuple[str, ...]) -> dict[str, Json]:
    return {"others": list(jobs)} if jobs else {}


def _others_of(fields: Fields) -> tuple[str, ...]:
    return fields.texts("others", NAME, at_least=1) if fields.holds("others") else ()
