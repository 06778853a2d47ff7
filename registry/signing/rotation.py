"""Rotation of a role's key: the new key signs from now on, the old one stays valid for a while.

The order makes a crash harmless: the new private key is on disk before the trust file names it,
and the trust file names it before anything signs with it. After a crash the next call goes on
where the last one stopped. Old keys stay in the trust file, because their records must verify.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from registry.errors import TrustError
from registry.schema import Json, encode_json, encode_time
from registry.signing.keys import TRUST_FILE, Role, Signer, Trust, create_private_key
from registry.store.durable_file import sync_folder, write_durably
from registry.store.file_lock import only_writer

OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The key ids, and the time from which the old key's signatures are refused."""

    role: Role
    old: str
    new: str
    not_after: datetime


def rotate_key(
    directory: Path | str, role: Role, *, now: datetime, overlap: timedelta = OVERLAP
) -> Rotation:
    """Give `role` a new key in a directory made by `init_keys`, and retire the old one.

    A process that holds the old key in memory must load the new one before `not_after`. The old
    private key is deleted from the disk. Copies of the trust file must be updated by hand.

    Raises: TrustError (no key for the role here, or one with several roles; no permission).
    """
    directory = Path(directory)
    path, coming = directory / f"{role}.pem", directory / f"{role}.next.pem"
    with _os_errors(directory), only_writer(directory / TRUST_FILE):
        trust = Trust.load(directory / TRUST_FILE)
        old = Signer.load(path)
        _check_sole_role(trust, old.key_id, role, where=str(path))
        create_private_key(coming)  # keeps one that a crash left
        new = Signer.load(coming)
        if new.key_id not in trust.keys:
            entries = _with_rotation(trust, old=old, new=new, role=role, not_after=now + overlap)
            write_durably(directory / TRUST_FILE, encode_json(entries))
            trust = Trust.load(directory / TRUST_FILE)
        os.replace(coming, path)
        sync_folder(directory)
    not_after = trust.keys[old.key_id].not_after
    return Rotation(role, old.key_id, new.key_id, not_after or now + overlap)


def _with_rotation(
    trust: Trust, *, old: Signer, new: Signer, role: Role, not_after: datetime
) -> dict[str, Json]:
    entries: dict[str, Json] = {}
    for key_id, key in trust.keys.items():
        ends = key.not_after
        if key_id == old.key_id:
            ends = min(ends, not_after) if ends is not None else not_after
        entries[key_id] = _entry(bytes(key.public_key), sorted(key.roles), ends)
    entries[new.key_id] = _entry(new.public_key, [role], None)
    return entries


def _entry(public_key: bytes, roles: list[Role], not_after: datetime | None) -> Json:
    return {
        "public_key": base64.b64encode(public_key).decode(),
        "roles": [*roles],
        "not_after": encode_time(not_after) if not_after is not None else None,
    }


def _check_sole_role(trust: Trust, key_id: str, role: Role, *, where: str) -> None:
    key = trust.keys.get(key_id)
    if key is None or key.roles != {role}:
        found = "isn't in it" if key is None else f"has the roles {', '.join(sorted(key.roles))}"
        raise TrustError(
            f"expected {trust.where} to give this key the role {role} alone, but it {found}; "
            "change the trust file by hand",
            check="role",
            where=where,
        )


@contextmanager
def _os_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrustError(
            f"keys can't be rotated: {error.strerror}", check="key file", where=str(directory)
        ) from error
