"""The whole life of one erasure, from the ledger and its blobs alone.

A record belongs to the life of a subject if it names the subject, one of its jobs, or a release
that is about it. A release is about a subject if it was made for its job, if it masks or erases
the subject and its parent doesn't (or the other way round), or if it is a compaction that erases
it. Classes don't appear, because the ledger doesn't know them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from registry.audit.summary import entry_to_json
from registry.errors import NotFoundError
from registry.fold.state import AdapterEntry, State
from registry.log.figures import report_figures
from registry.log.ledger import Ledger
from registry.records.bodies import Compacted, Refused, Requested, Trained
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Tombstone
from registry.records.record import Entry
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack
from registry.schema import Json, encode_time

MASKED = "masked"
FORGOTTEN = "forgotten by the weights"
EVERYWHERE = " on every replica"

Standing = Literal["requested", "masked", "forgotten", "restored", "sealed"]


@dataclass(frozen=True, slots=True)
class Milestone:
    """A step that was reached, the record that made it, and its release if there is one."""

    name: str
    entry: Entry
    release: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """An adapter that erases the subject, and the figures of its report."""

    adapter: AdapterEntry
    figures: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Audit:
    """What can be said of one subject as of record `seq`, whose digest is `head`.

    `standing` is what every replica does now: "masked" and "forgotten" (by the weights) count
    from the confirmation on. `milestones` and `entries` are in the order of the log.
    """

    subject: str
    standing: Standing
    backbone: str
    seq: int
    head: str
    milestones: tuple[Milestone, ...]
    evidence: tuple[Evidence, ...]
    entries: tuple[Entry, ...]


def audit(ledger: Ledger, subject: str) -> Audit:
    """Follow a subject through the log, up to the newest record.

    Raises: NotFoundError (no request names the subject), IntegrityError (a report's bytes
    changed), whatever `Ledger.refresh` does.
    """
    state = ledger.refresh()
    if subject not in state.subjects:
        raise NotFoundError(f"no record up to {state.seq} requests the erasure of {subject}")
    entries = tuple(_life(ledger, state, subject))
    erasing = [a for a in state.adapters.values() if subject in a.subjects]
    return Audit(
        subject=subject,
        standing=_standing(state, subject),
        backbone=state.backbone or "",
        seq=state.seq,
        head=state.head,
        milestones=tuple(_milestones(entries, state, subject)),
        evidence=tuple(Evidence(a, report_figures(ledger, a.report)) for a in erasing),
        entries=entries,
    )


def audit_to_json(found: Audit) -> dict[str, Json]:
    return {
        "subject": found.subject,
        "standing": found.standing,
        "backbone": found.backbone,
        "seq": found.seq,
        "head": found.head,
        "milestones": [
            {
                "name": milestone.name,
                "at": encode_time(milestone.entry.record.at),
                "seq": milestone.entry.record.seq,
                "release": milestone.release,
            }
            for milestone in found.milestones
        ],
        "adapters": [
            {
                "adapter": evidence.adapter.id,
                "job": evidence.adapter.job,
                "stack": list(evidence.adapter.stack),
                **_others(evidence.adapter),
                **_folds(evidence.adapter),
                "files": {
                    name: [file.digest, file.size] for name, file in evidence.adapter.files.items()
                },
                "report": evidence.adapter.report,
                "figures": evidence.figures,
            }
            for evidence in found.evidence
        ],
        "records": [entry_to_json(entry) for entry in found.entries],
    }


def _others(adapter: AdapterEntry) -> dict[str, Json]:
    return {"others": list(adapter.others)} if adapter.others else {}


def _folds(adapter: AdapterEntry) -> dict[str, Json]:
    return {"folds": list(adapter.folds)} if adapter.folds else {}


def _life(ledger: Ledger, state: State, subject: str) -> Iterator[Entry]:
    jobs = {job.id for job in state.jobs.values() if subject in job.subjects}
    releases = {number for number in state.releases if _is_about(state, number, subject, jobs)}
    for entry in ledger.records():
        match entry.record.body:
            case (
                Requested(subjects=subjects)
                | Restored(subjects=subjects)
                | Tombstone(subjects=subjects)
                | Compacted(subjects=subjects)
                | LegalHold(subjects=subjects)
            ):
                belongs = subject in subjects
            case Trained(job=job, others=others) | Refused(job=job, others=others):
                belongs = not jobs.isdisjoint((job, *others))
            case Retried(job=job):
                belongs = job in jobs
            case (
                Published(release=release)
                | RolledBack(release=release)
                | Activated(release=release)
                | Confirmed(release=release)
                | Canary(release=release)
            ):
                belongs = release in releases
            case Sealed():
                belongs = True
            case _:
                belongs = False
        if belongs:
            yield entry


def _is_about(state: State, number: int, subject: str, jobs: set[str]) -> bool:
    release = state.releases[number]
    if release.parent is None:
        return False
    before, now = (_effect(state, n, subject) for n in (release.parent, number))
    folded = release.kind == "compaction" and now[1]
    return release.job in jobs or before != now or folded


def _effect(state: State, number: int, subject: str) -> tuple[bool, bool]:
    """Whether a release masks the subject, and whether its weights erase it."""
    masked = subject in state.releases[number].guard
    return masked, subject in state.subjects_forgotten(number)


def _standing(state: State, subject: str) -> Standing:
    if subject not in state.erasing:
        return "restored"
    if state.seal is not None:
        return "sealed"
    # Until the active release is confirmed, a replica may serve either of the two.
    effects = [_effect(state, number, subject) for number in (state.confirmed, state.active)]
    if all(erased for _, erased in effects):
        return "forgotten"
    return "masked" if all(masked for masked, _ in effects) else "requested"


def _milestones(entries: tuple[Entry, ...], state: State, subject: str) -> Iterator[Milestone]:
    """The first of each kind since the last request. What was undone can be reached again."""
    reached: set[str] = set()
    for entry in entries:
        names: list[str] = []
        number = None
        match entry.record.body:
            case Requested():
                reached.clear()
                names = ["requested"]
            case Restored():
                names = ["restored"]
            case Sealed():
                names = ["sealed"]
            case Activated(release=release):
                number = release
                effects = _effects(state, release, subject, how="")
                for lost in sorted({MASKED, FORGOTTEN} & reached - set(effects)):
                    reached -= {lost, f"{lost}{EVERYWHERE}"}
                    names.append(f"no longer {lost}")
                    reached.discard(f"no longer {lost}")
                names += effects
            case Confirmed(release=release):
                number = release
                names = _effects(state, release, subject, how=EVERYWHERE)
        for name in names:
            if name not in reached:
                reached.add(name)
                yield Milestone(name, entry, number)


def _effects(state: State, number: int, subject: str, *, how: str) -> list[str]:
    masked, erased = _effect(state, number, subject)
    return [f"{MASKED}{how}"] * masked + [f"{FORGOTTEN}{how}"] * erased
