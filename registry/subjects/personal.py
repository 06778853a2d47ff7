"""What a registry keeps of a subject beside the log, and its deletion under a tombstone.

    subjects/<id>.json                  its entry in the subject map, with the claim of its class
    subjects/<id>/images/<sha256>       images that were given with the request to forget it
    subjects/<id>/prototypes/...        templates that were computed from such images

Nothing here is part of the log, so all of it can be deleted and the chain still verifies.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import get_args

from registry.errors import AlreadyExistsError, NotFoundError
from registry.log.ledger import Ledger
from registry.publish.declarations import record_deletion
from registry.records.declarations import Deletable
from registry.signing.keys import Signer
from registry.store.contract import Store
from registry.subjects.subject_map import PREFIX, SubjectMap

FILES: tuple[Deletable, ...] = ("images", "prototypes")


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was deleted under a tombstone: the kinds `objects`, and the keys of the `files`.

    `map_entry_kept`: replicas still need the class, so the entry in the subject map stays until
    another tombstone.
    """

    objects: tuple[Deletable, ...]
    files: tuple[str, ...]
    map_entry_kept: bool


def keep_image(store: Store, subject: str, data: bytes) -> str:
    """Store an image for a subject, durably, and return its key. The same image is stored once.

    Raises: StoreError.
    """
    key = f"{PREFIX}{subject}/images/{hashlib.sha256(data).hexdigest()}"
    while True:
        try:
            store.create(key, data)
        except AlreadyExistsError:
            # Touched, then read: `upkeep.collect` deletes old images that no request names.
            with suppress(NotFoundError):
                store.touch(key)
                store.read(key)
                return key
        else:
            return key


def images_of(store: Store, subject: str) -> list[bytes]:
    """The images of a subject, in a fixed order. Raises: StoreError."""
    found = []
    for key in files_of(store, subject)["images"]:
        with suppress(NotFoundError):  # deleted meanwhile
            found.append(store.read(key))
    return found


def files_of(store: Store, subject: str) -> Mapping[Deletable, list[str]]:
    """The keys of the subject's files, by kind. Raises: StoreError."""
    return {kind: store.list(f"{PREFIX}{subject}/{kind}/") for kind in FILES}


def bury(
    ledger: Ledger,
    store: Store,
    signer: Signer,
    *,
    subject: str,
    actor: str,
    reason: str,
    request_id: str,
) -> Deletion:
    """Delete all that may be deleted of a subject, and write its tombstone. Needs the role eraser.

    While replicas need the class, only the files are deleted. After a crash, call this again.

    Raises: as `record_deletion`; also ConflictError when nothing can be deleted.
    """
    state = ledger.refresh()
    files = files_of(store, subject)
    in_use = subject in state.subjects_in_use
    kept = in_use and any(files.values())
    # All kinds, also empty ones: a call that was cut off may have deleted their files.
    objects = FILES if kept else get_args(Deletable)

    def delete() -> None:
        for key in (key for keys in files.values() for key in keys):
            with suppress(NotFoundError):
                store.delete(key)
        if not kept:
            with suppress(NotFoundError):
                SubjectMap(store).delete(subject)

    record_deletion(
        ledger,
        signer,
        subjects=[subject],
        objects=objects,
        delete=delete,
        actor=actor,
        reason=reason,
        request_id=request_id,
    )
    return Deletion(
        objects=objects,
        files=tuple(key for keys in files.values() for key in keys),
        map_entry_kept=kept,
    )
