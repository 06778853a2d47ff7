"""The recorded acts of a canary; as those in `publish`, and with the same errors."""

from registry.fold.state import State
from registry.log.ledger import Ledger
from registry.records.record import Draft
from registry.records.trials import Canary
from registry.signing.keys import Signer


def begin_canary(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    percent: int,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Have `percent` (1 to 99) of the requests answered by a defined release. Needs the role
    operator. To promote it, activate it."""
    body = Canary(release, percent, "")
    return ledger.append(lambda _: Draft(body, actor, reason, request_id), signer)


def end_canary(
    ledger: Ledger,
    signer: Signer,
    *,
    release: int,
    detail: str,
    actor: str,
    reason: str,
    request_id: str,
) -> State:
    """Have all requests answered by the active release again; `detail` says why. Needs the role
    operator. The release can't be tried again or activated. Nothing is recorded when the trial has
    ended already."""

    def make(state: State) -> Draft | None:
        if state.canary is None or state.canary.release != release:
            return None
        return Draft(Canary(release, 0, detail), actor, reason, request_id)

    return ledger.append(make, signer)
