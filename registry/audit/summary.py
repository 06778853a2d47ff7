"""One line and one JSON object for each record: what the log says, for people and for programs.

Subjects are shown as ids. Their classes are in the subject map, which fewer people may read.
"""

from registry.records.bodies import Body, Compacted, Note, Refused, Requested, Trained
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.record import Entry
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack
from registry.schema import Json, encode_time


def short(identifier: str) -> str:
    """The first 12 hex digits of a digest or a subject id."""
    return identifier.removeprefix("sha256:")[:12]


def summary(body: Body) -> str:
    """What a record says, in one line."""
    match body:
        case Requested():
            return f"{body.job}: erase {_shorts(body.subjects)}"
        case Trained():
            kind = "provisional adapter" if body.provisional else "adapter"
            adapter = f"{kind} {short(body.adapter)}"
            return f"{_jobs(body)}: {adapter} on a stack of {len(body.stack)}"
        case Compacted():
            return f"adapter {short(body.adapter)} stands for the {len(body.folds)} below it"
        case Refused():
            refused = "refused as one task" if body.others else "refused"
            return f"{_jobs(body)}: {refused}, {body.stage}: {body.detail}"
        case Published():
            job = f" for {body.job}" if body.job is not None else ""
            return f"release {body.release} ({body.kind}){job}, {_content(body)}"
        case RolledBack():
            return f"release {body.release} (rollback to {body.to}), {_content(body)}"
        case Activated():
            return f"release {body.release} is active"
        case Confirmed():
            expired = sum(outcome == "lease_expired" for outcome in body.members.values())
            return (
                f"release {body.release}: {len(body.members) - expired} replicas confirmed, "
                f"{expired} without a lease, {body.ms:.0f} ms"
            )
        case Canary():
            if body.percent == 0:
                return f"release {body.release} is off trial: {body.detail}"
            return f"release {body.release} is on trial for {body.percent} % of the requests"
        case Retried():
            return f"{body.job}: to be trained again"
        case Restored():
            return f"no longer under erasure: {_shorts(body.subjects)}"
        case Tombstone():
            return f"deleted: {', '.join(body.objects)} of {_shorts(body.subjects)}"
        case LegalHold():
            return f"legal hold {body.act}: {_shorts(body.subjects)}"
        case Suspended():
            return f"serving {body.state}"
        case Sealed():
            return f"release {body.release} sealed into the backbone {short(body.backbone)}"
        case Note():
            return body.text


def entry_to_json(entry: Entry) -> dict[str, Json]:
    """A record with its own digest and its signer."""
    record = entry.record
    return {
        "seq": record.seq,
        "at": encode_time(record.at),
        "type": record.type,
        "actor": record.actor,
        "reason": record.reason,
        "request_id": record.request_id,
        "body": record.body.to_json(),
        "digest": entry.digest,
        "key_id": entry.key_id,
    }


def _content(body: Published | RolledBack) -> str:
    return f"{len(body.adapters)} adapters, {len(body.guard)} masked"


def _jobs(body: Trained | Refused) -> str:
    return ", ".join((body.job, *body.others))


def _shorts(subjects: tuple[str, ...]) -> str:
    return ", ".join(map(short, subjects))
