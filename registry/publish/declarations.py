"""The recorded acts that declare something about subjects, serving or the registry itself."""

from collections.abc import Callable, Sequence

from registry.errors import FormatError
from registry.fold.declarations import check_tombstone
from registry.fold.state import State
from registry.log.ledger import Ledger
from registry.records.bodies import Note
from registry.records.declarations import (
    Deletable,
    HoldAct,
    LegalHold,
    Restored,
    Sealed,
    ServingState,
    Suspended,
    Tombstone,
)
from registry.records.record import Draft, Record
from registry.signing.keys import Signer


def restore_subjects(
    ledger: Ledger,
    signer: Signer,
    *,
    subjects: Sequence[str],
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """End the erasure of subjects, and say why (FormatError without a reason). Needs the role
    operator.

    This changes nothing that is served. To serve the subjects again, roll back to
    `State.release_without` them; if they were only masked, a guard release for their job is
    enough. Until such a release is active, they are in `State.subjects_to_unmask`.
    """
    if not reason.strip():
        raise FormatError(
            "field reason: to end an erasure needs one; it stands in the ledger",
            check="schema",
            where="new record",
        )
    body = Restored(tuple(subjects))
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def record_deletion(
    ledger: Ledger,
    signer: Signer,
    *,
    subjects: Sequence[str],
    objects: Sequence[Deletable],
    delete: Callable[[], None],
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Call `delete`, which deletes the subjects' objects, then write their tombstone. Needs the
    role eraser.

    The rules (no legal hold, not in use) are checked before anything is deleted. `delete` must
    accept that objects are gone already: after a crash the whole call is repeated.
    """
    body = Tombstone(tuple(subjects), tuple(objects))
    check_tombstone(ledger.refresh(), body)
    delete()
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def record_hold(
    ledger: Ledger,
    signer: Signer,
    *,
    subjects: Sequence[str],
    act: HoldAct,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Place or lift a legal hold, which forbids tombstones. Needs the role operator."""
    body = LegalHold(tuple(subjects), act)
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def record_suspension(
    ledger: Ledger,
    signer: Signer,
    *,
    state: ServingState,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Record that nothing may be served, or that serving resumes. Needs the role operator."""
    return ledger.append(lambda _: Draft(Suspended(state), actor, reason, request_id), signer)


def record_seal(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    backbone: str,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Record that the active release was folded into the new `backbone` (a fingerprint). Needs the
    role operator. No release can follow; the new backbone has a registry of its own."""
    body = Sealed(release, backbone)
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def write_note(
    ledger: Ledger,
    signer: Signer,
    *,
    text: str,
    actor: str,
    reason: str,
    request_id: str,
) -> Record:
    """Write a remark into the log. Needs the role operator."""
    state = ledger.append(lambda _: Draft(Note(text), actor, reason, request_id), signer)
    return next(ledger.records(state.seq)).record
