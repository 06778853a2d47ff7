"""LETHE_HOME: where one installation keeps its keys, tokens, backbones and registry.

keys/         signing keys, one a role, and trust.json        (0600)
tokens/       bearer tokens: operator, auditor                (0600)
backbones/    what was trained here, by recipe
registry/     the ledger and its blobs (or elsewhere: `registry` in the settings)
registry-evidence.json  what live traffic has shown, per stack of adapters
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from registry.errors import StoreError
from registry.keys import Role, Signer, Trust, init_keys
from registry.ledger import Ledger
from registry.state import State
from registry.store import DirectoryStore
from registry.subjects import SubjectMap
from serving.settings import Settings

Caller = Literal["operator", "auditor"]
CALLERS: tuple[Caller, ...] = ("operator", "auditor")


log = logging.getLogger(__name__)

STORE_RETRY_S = 1.0


class HomeError(Exception):
    """The home folder can't be used; the message says why and what to do."""


@dataclass(frozen=True)
class Home:
    path: Path
    registry: Path

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
    def evidence(self) -> Path:
        # Beside the registry that it is about: several may share one home.
        return self.registry.with_name(f"{self.registry.name}-evidence.json")


def home_of(settings: Settings) -> Home:
    return Home(settings.home_path, settings.registry_path)


def prepare_home(home: Home) -> None:
    """Make what a first start lacks: folders, signing keys, tokens. Raises `HomeError`."""
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        home.registry.mkdir(parents=True, exist_ok=True)
        home.tokens.mkdir(mode=0o700, exist_ok=True)
        init_keys(home.keys)
        for caller in CALLERS:
            _make_token(home.tokens / caller)
    except OSError as error:
        raise HomeError(f"can't use {home.path} as LETHE_HOME: {error}") from None


def _make_token(path: Path) -> None:
    if path.exists():
        return
    # Written aside and linked: a crash leaves no empty token behind, and of two first starts
    # at once both end up with the same one.
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(aside)


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
        raise HomeError(f"{path} belongs to somebody else: the {caller} token is needed") from None


def open_ledger(home: Home) -> Ledger:
    return Ledger(DirectoryStore(home.registry), Trust.load(home.keys / "trust.json"))


def read_ledger(ledger: Ledger) -> State:
    """The ledger's state, waited for while the storage fails.

    For the constructors of actors: Ray restarts a process that dies, but gives an actor up for
    good whose constructor raises. A ledger that fails its checks does raise: it must not be served.
    """
    while True:
        try:
            return ledger.refresh()
        except StoreError as error:
            log.error("the ledger can't be read, trying again: %s", error)
            time.sleep(STORE_RETRY_S)


def open_subjects(home: Home) -> SubjectMap:
    # Its files hold class names.
    return SubjectMap(DirectoryStore(home.registry, file_mode=0o600))


def signer(home: Home, role: Role) -> Signer:
    return Signer.load(home.keys / f"{role}.pem")
