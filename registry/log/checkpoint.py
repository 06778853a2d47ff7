"""Checkpoints: the fold of a long log, kept by a reader so that it needn't verify it all again.

A checkpoint is a cache outside the registry. It is valid for one trust file and one version of
this code. The reader compares its last record with the log, and so notices a log that was cut
back or replaced. It doesn't notice damage to an earlier record; `verify` does.

Whoever can write a checkpoint can deceive its reader, as with the trust file. So the files have
mode 0600, and a file that others can write is not used.

    <directory>/<trust, 16 hex>-<first record, 16 hex>.json     header line, then the state
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path

from registry.errors import NotFoundError
from registry.fold.state import State
from registry.fold.state_json import state_from_json, state_to_json
from registry.log.ledger import Ledger, log_key, utc_now
from registry.records.record import digest_of
from registry.schema import encode_json
from registry.signing.keys import Trust
from registry.store.contract import Store
from registry.store.durable_file import write_durably

WORTH_SAVING = 100
"""A new checkpoint is made after this many records."""
_DECIDING = ("schema.py", "signing/*.py", "records/*.py", "fold/*.py")
"""The code that decides what a log adds up to."""


def open_ledger(
    store: Store,
    trust: Trust,
    *,
    directory: Path,
    clock: Callable[[], datetime] = utc_now,
) -> Ledger:
    """A refreshed ledger. It starts from the checkpoint in `directory`, if there is a valid one,
    and saves a newer one if it had to read many records.

    Raises: as `Ledger.refresh`; also check "replay" when the log is older than the checkpoint.
    """
    known = load(directory, store, trust)
    ledger = Ledger(store, trust, clock=clock, known=known)
    state = ledger.refresh()
    if state.seq - (known.seq if known is not None else 0) >= WORTH_SAVING:
        with suppress(OSError):  # a reader without a checkpoint is slower, not worse
            save(directory, store, state, trust)
    return ledger


def save(directory: Path, store: Store, state: State, trust: Trust) -> None:
    """Keep a state that was verified with `trust`. Raises: OSError, NotFoundError (empty log)."""
    body = encode_json(state_to_json(state))
    header = encode_json({"code": _code(), "sha256": hashlib.sha256(body).hexdigest()})
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(directory / _name(store, trust), header + b"\n" + body, mode=0o600)


def load(directory: Path, store: Store, trust: Trust) -> State | None:
    """The state kept for this log and trust, or None when there is none that can be used.

    Raises: StoreError.
    """
    try:
        with open(directory / _name(store, trust), "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                return None
            header, _, body = file.read().partition(b"\n")
        facts = json.loads(header)
        if facts != {"code": _code(), "sha256": hashlib.sha256(body).hexdigest()}:
            return None
        return state_from_json(json.loads(body))
    except (OSError, NotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None


def _name(store: Store, trust: Trust) -> str:
    first = digest_of(store.read(log_key(1))).removeprefix("sha256:")
    return f"{trust.fingerprint[:16]}-{first[:16]}.json"


@cache
def _code() -> str:
    """A digest of the code that decides what a log adds up to: a checkpoint is for one version."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for pattern in _DECIDING:
        for path in sorted(package.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()
