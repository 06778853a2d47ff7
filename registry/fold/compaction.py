"""The fold of a compaction: one adapter that stands for a stack, and the release that serves it.

As in `rules`: pure, and a record that breaks a rule raises `ConflictError`. This package doesn't
know what an adapter computes, so whoever makes the compaction checks that its outputs are the same.
Checked here: the subjects are those of the stack, the stack is the active one, no mask is removed.
"""

from dataclasses import replace
from types import MappingProxyType

from registry.errors import ConflictError
from registry.fold.state import AdapterEntry, State
from registry.records.bodies import Compacted
from registry.records.record import Record
from registry.records.releases import Published


def compacted(state: State, record: Record, body: Compacted) -> State:
    """There is an adapter that stands for others; nothing serves it yet."""
    unknown = [adapter for adapter in body.folds if adapter not in state.adapters]
    if unknown:
        raise ConflictError(f"no record defines the adapters {', '.join(unknown)}")
    erased = {subject for adapter in body.folds for subject in state.adapters[adapter].subjects}
    if set(body.subjects) != erased:
        raise ConflictError("the subjects of a compaction are those of the adapters that it folds")
    if body.adapter in body.folds:
        raise ConflictError(f"the adapter {body.adapter} can't stand for itself")
    known = state.adapters.get(body.adapter)
    if known is not None and known.folds != body.folds:
        raise ConflictError(f"the adapter {body.adapter} was recorded before, for another stack")
    entry = AdapterEntry(
        id=body.adapter,
        files=MappingProxyType(dict(body.files)),
        subjects=body.subjects,
        stack=(),
        report=body.report,
        job=None,
        seq=record.seq,
        at=record.at,
        folds=body.folds,
    )
    return replace(state, adapters=state.adapters.with_entry(entry.id, entry))


def check_compaction(state: State, body: Published) -> None:
    """Refuse a release that is no compaction of the active one.

    Raises: ConflictError.
    """
    active = state.active_release
    adapter = state.adapters.get(body.adapters[0]) if len(body.adapters) == 1 else None
    if adapter is None or adapter.folds != active.adapters:
        raise ConflictError(
            "a compaction has one adapter, which stands for those of the active release "
            f"{active.number} in their order; this one doesn't: compact again"
        )
    if set(body.guard) != active.guard | state.erasing:
        raise ConflictError("a compaction masks what the active release masks, and no less or more")
