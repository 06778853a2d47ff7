"""The fold: how each record changes the state, and which records are not allowed.

Pure functions. A record that breaks a rule raises `ConflictError`, whoever signed it: the ledger
doesn't append it, and doesn't read a log that contains it. The two main rules: release numbers
grow without gaps, and a release must mask every subject under erasure to be defined or activated.
"""

from dataclasses import replace

from registry.errors import ConflictError
from registry.fold.compaction import compacted
from registry.fold.declarations import (
    check_not_sealed,
    hold,
    restored,
    sealed,
    suspended,
    tombstone,
)
from registry.fold.jobs import refused, requested, retried, trained
from registry.fold.releases import activated, confirmed, published, rolled_back, trial
from registry.fold.state import State
from registry.records.bodies import Compacted, Note, Refused, Requested, Trained
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.record import Record
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack


def apply(state: State, record: Record, *, digest: str) -> State:
    """The state after `record`, whose stored bytes have the digest `digest`.

    Raises: ConflictError when the record can't follow. The message says which rule it breaks.
    """
    if record.seq != state.seq + 1 or record.prev != state.head:
        raise ConflictError(
            f"record {record.seq} after {record.prev} can't follow record {state.seq}, {state.head}"
        )
    return replace(_changed(state, record), seq=record.seq, head=digest)


def _changed(state: State, record: Record) -> State:
    check_not_sealed(state, record.body)
    match record.body:
        case Requested() as body:
            return requested(state, record, body)
        case Trained() as body:
            return trained(state, record, body)
        case Compacted() as body:
            return compacted(state, record, body)
        case Refused() as body:
            return refused(state, body)
        case Published() as body:
            return published(state, record, body)
        case RolledBack() as body:
            return rolled_back(state, record, body)
        case Activated() as body:
            return activated(state, record, body)
        case Confirmed() as body:
            return confirmed(state, record, body)
        case Canary() as body:
            return trial(state, record, body)
        case Retried() as body:
            return retried(state, record, body)
        case Restored() as body:
            return restored(state, record, body)
        case Tombstone() as body:
            return tombstone(state, body)
        case LegalHold() as body:
            return hold(state, body)
        case Suspended() as body:
            return suspended(state, body)
        case Sealed() as body:
            return sealed(state, record, body)
        case Note():
            return state
