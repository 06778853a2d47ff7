"""The steps by which a replica changes what it answers: its slot and its lease together.

An acknowledgement depends on the order of these steps. A replica confirms a release, or says that
it is silent, only when no request holds anything older.
"""

from __future__ import annotations

from serving.replica.lease import Lease
from serving.replica.slot import ReadyRelease, Slot


def take_up(ready: ReadyRelease, slot: Slot, lease: Lease, *, timeout: float) -> bool:
    """Flip, drain, then confirm. False when a request holds an older release for longer than
    `timeout` seconds: `ready` serves then, but it is not confirmed."""
    slot.flip(ready)
    if not slot.drain(ready.number, timeout):
        return False
    lease.confirm(ready.number)
    return True


def obey(*, suspended: bool, slot: Slot, lease: Lease, timeout: float) -> None:
    """Stop answering, or answer again, as the ledger says.

    Before it is silent, a replica waits up to `timeout` seconds: responses whose lease was checked
    before the stop may not be sent yet.
    """
    if suspended:
        lease.halt()
        lease.fall_silent(drained=slot.drain(None, timeout))
    elif lease.suspended:
        lease.go_on()
