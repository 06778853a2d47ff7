"""The two recorded acts of a compaction."""

from collections.abc import Mapping, Sequence

from registry.errors import ConflictError, NotFoundError
from registry.fold.state import AdapterEntry, Release, State
from registry.log.adapters import new_files
from registry.log.ledger import Ledger
from registry.records.bodies import Compacted
from registry.records.record import Draft
from registry.records.releases import Published
from registry.signing.keys import Signer


def record_compacted(
    ledger: Ledger,
    signer: Signer,
    *,
    files: Mapping[str, bytes],
    folds: Sequence[str],
    report: bytes,
    actor: str,
    reason: str,
    request_id: str,
) -> AdapterEntry:
    """Store and record an adapter that does the same as the stack `folds` (ids, lowest first).

    Needs the role publisher. `report` says how that was checked. The same files again add no
    second record.
    """
    new = new_files(files, report)

    def make(state: State) -> Draft | None:
        known = state.adapters.get(new.adapter)
        if known is not None and known.folds == tuple(folds):
            return None
        subjects = [s for id in folds if id in state.adapters for s in state.adapters[id].subjects]
        body = Compacted(
            adapter=new.adapter,
            files=new.refs,
            folds=tuple(folds),
            subjects=tuple(dict.fromkeys(subjects)),
            report=new.report,
        )
        return Draft(body, actor, reason, request_id)

    return ledger.append(make, signer, blobs=new.blobs).adapters[new.adapter]


def publish_compaction(
    ledger: Ledger, signer: Signer, *, adapter: str, actor: str, reason: str, request_id: str
) -> Release:
    """Define the next release: the active one, with one adapter in place of its stack.

    Needs the role publisher. Raises ConflictError when another stack is active: compact that one.
    """

    def make(state: State) -> Draft:
        if adapter not in state.adapters:
            raise NotFoundError(f"no record defines the adapter {adapter}")
        if state.backbone is None:
            raise ConflictError("nothing was ever requested, so there is nothing to release")
        active = state.active_release
        body = Published(
            release=state.last_release + 1,
            kind="compaction",
            backbone=state.backbone,
            adapters=(adapter,),
            guard=tuple(sorted(active.guard | state.erasing)),
            parent=active.number,
            job=None,
        )
        return Draft(body, actor, reason, request_id)

    state = ledger.append(make, signer)
    return state.releases[state.last_release]
