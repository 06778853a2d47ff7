"""LETHE_HOME: where one installation keeps its keys, tokens, backbones and registry.

keys/         signing keys, one a role, and trust.json        (0600)
tokens/       bearer tokens: operator, auditor                (0600)
backbones/    the trained default backbone, in a folder for each recipe
engines/      ONNX graphs (without weights), and the measured speed of each engine
registry/     the ledger and its blobs (or elsewhere, also in a bucket: `registry` in the settings)
registry-evidence.json  what live traffic has shown, per stack of adapters
highwater.json  the newest record ever seen, signed: it shows when the registry is an older copy
checkpoints/  the folded state of long logs, as of when they were last read
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_fixed

from registry.errors import IntegrityError, StoreError
from registry.log import checkpoint
from registry.log.highwater import HIGHWATER_FILE, check_mark, raise_mark, read_mark
from registry.log.ledger import Ledger
from registry.signing.keys import TRUST_FILE, Role, Signer, Trust, init_keys
from registry.store.contract import Store
from registry.store.directory import open_store
from registry.store.durable_file import make_folder, write_durably
from registry.subjects.subject_map import SubjectMap
from serving.config.settings import Settings
from serving.errors import ServingError

Caller = Literal["operator", "auditor"]
CALLERS: tuple[Caller, ...] = ("operator", "auditor")

log = logging.getLogger(__name__)

STORE_RETRY_S = 1.0


class HomeError(ServingError):
    """The home folder can't be used; the message says why and what to do."""


@dataclass(frozen=True)
class Home:
    path: Path
    registry: Path | str
    """A folder, or the URL of a folder in a bucket."""

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def backbones(self) -> Path:
        return self.path / "backbones"

    @property
    def engines(self) -> Path:
        """ONNX graphs without weights, and the measured speed of each engine."""
        return self.path / "engines"

    @property
    def evidence(self) -> Path:
        return self._beside("evidence.json")

    @property
    def highwater(self) -> Path:
        if self.registry == self.path / "registry":
            return self.path / HIGHWATER_FILE
        return self._beside(HIGHWATER_FILE)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def trust(self) -> Trust:
        """Raises as `Trust.load`."""
        return Trust.load(self.keys / TRUST_FILE)

    def _beside(self, name: str) -> Path:
        """A file about this registry. Its name holds the registry's, since several registries may
        share one home."""
        if isinstance(self.registry, Path):
            return self.registry.with_name(f"{self.registry.name}-{name}")
        digest = hashlib.sha256(self.registry.encode()).hexdigest()[:12]
        return self.path / f"bucket-{digest}-{name}"


def home_of(settings: Settings) -> Home:
    return Home(settings.home_path, settings.registry_location)


def prepare_home(home: Home) -> None:
    """Create the folders, signing keys and tokens that don't exist yet. Raises `HomeError`."""
    try:
        make_folder(home.path)
        if isinstance(home.registry, Path):
            make_folder(home.registry)
        make_folder(home.tokens, mode=0o700)
        init_keys(home.keys)
        for caller in CALLERS:
            _make_token(home.tokens / caller)
    except OSError as error:
        raise HomeError(f"can't use {home.path} as LETHE_HOME: {error}") from None


def _make_token(path: Path) -> None:
    """Make a token if there is none. Two first starts at once end up with the same one."""
    with suppress(FileExistsError):
        made = f"{secrets.token_urlsafe(32)}\n"
        write_durably(path, made.encode(), mode=0o600, replace=False)


def token(home: Home, caller: Caller) -> str:
    """The bearer token of `caller`. Raises `HomeError` when absent or readable by others."""
    path = home.tokens / caller
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise HomeError(f"{path} is readable by others (mode {mode:04o}): chmod 600 {path}")
        found = path.read_text().strip()
        if not found:
            raise HomeError(f"{path} is empty: delete it, the next `lethe serve` makes a new one")
        return found
    except FileNotFoundError:
        raise HomeError(f"no token at {path}: start `lethe serve` once, it makes one") from None
    except PermissionError:
        raise HomeError(f"{path} belongs to another user: the {caller} token is needed") from None


def open_ledger(home: Home, *, read_only: bool = False) -> Ledger:
    """The registry's ledger, not read yet. With `read_only`, a bucket needs to allow no writes."""
    return Ledger(open_store(home.registry, read_only=read_only), home.trust)


def open_current_ledger(home: Home, *, read_only: bool = False) -> Ledger:
    """The ledger, read, and compared with the high-water mark: the newest record ever seen of it.

    Raises as `Ledger.refresh`. Raises IntegrityError with the check "replay" when this is an older
    copy of the registry: all its records are valid, but newer ones are missing.
    """
    trust = home.trust
    # The mark is read before the log: read later, it could name a record added in between.
    mark = read_mark(home.highwater, trust)
    store = open_store(home.registry, read_only=read_only)
    ledger = checkpoint.open_ledger(store, trust, directory=home.checkpoints)
    check_mark(ledger, mark, path=home.highwater)
    return ledger


def _say_why(state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    log.error("the registry can't be opened, trying again: %s", error)


_patiently = Retrying(
    retry=retry_if_exception_type(StoreError),
    wait=wait_fixed(STORE_RETRY_S),
    before_sleep=_say_why,
)


def wait_for_ledger(home: Home, *, read_only: bool = False) -> Ledger:
    """`open_current_ledger`, repeated for as long as the storage fails.

    For the constructors of actors: Ray restarts a process that dies, but not an actor whose
    constructor raises. A ledger that fails its checks still raises, since it must not be served.
    """
    return _patiently(open_current_ledger, home, read_only=read_only)


def wait_for_private_store(home: Home, *, read_only: bool = False) -> Store:
    """`open_private_store`, repeated for as long as the storage fails, like `wait_for_ledger`:
    opening a bucket sends requests to it."""
    return _patiently(open_private_store, home, read_only=read_only)


def check_registry(home: Home) -> Ledger:
    """`open_current_ledger` for the start of a server.

    Raises what that raises. Only for an older copy of the registry it raises `HomeError`, whose
    message says what to do.
    """
    try:
        return open_current_ledger(home)
    except IntegrityError as error:
        if error.check != "replay":
            raise
        raise HomeError(
            f"the registry {home.registry} is not served: {error}. Put the newest copy back. If "
            "there is none, the missing records may be lost: tell those who asked for erasures "
            f"since, and delete {home.highwater} and {home.checkpoints}"
        ) from None


def note_seen(home: Home, ledger: Ledger, operator: Signer) -> None:
    """Raise the high-water mark to the newest record of `ledger`.

    After this, an older copy of the registry, which lacks that record, is noticed and refused.
    Raises as `registry.log.highwater.raise_mark`.
    """
    state = ledger.state
    raise_mark(home.highwater, seq=state.seq, head=state.head, signer=operator, trust=home.trust)


def open_private_store(home: Home, *, read_only: bool = False) -> Store:
    """The registry's store for personal data: files that it writes have mode 0600."""
    return open_store(home.registry, read_only=read_only, file_mode=0o600)


def open_subjects(home: Home, *, read_only: bool = False) -> SubjectMap:
    return SubjectMap(open_private_store(home, read_only=read_only))


def signer(home: Home, role: Role) -> Signer:
    return Signer.load(home.keys / f"{role}.pem")
