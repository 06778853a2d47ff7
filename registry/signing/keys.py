"""Ed25519 keys (RFC 8032), the roles they may sign in, and the trust file that says so.

The private keys and `trust.json` live in a directory of their own, never in the registry that
they protect. There is no certificate chain and no threshold: one small file lists who may sign
what, and whoever can write that file decides.

`cryptography` makes the signatures and reads and writes PEM. libsodium (PyNaCl) checks them:
reading a log is mostly checking signatures, and it takes half the time of OpenSSL.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as LengthError
from nacl.signing import VerifyKey

from registry.errors import TrustError
from registry.schema import Fields, Json, decode_json, encode_json, encode_time
from registry.signing.envelope import PAYLOAD_TYPE, Signature, signed_bytes
from registry.store.durable_file import make_folder, write_durably

Role = Literal["publisher", "operator", "eraser"]
ROLES: tuple[Role, ...] = get_args(Role)
TRUST_FILE = "trust.json"
_ROLE = re.compile("|".join(ROLES))


class Signer:
    """A private key, ready to sign. The trust file says which role it has."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    @classmethod
    def load(cls, path: Path | str) -> "Signer":
        """Read an unencrypted PEM file that only its owner can read.

        Raises: TrustError (missing, wider than 0600, not an Ed25519 key).
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                data = file.read(16 * 1024)
        except OSError as error:
            raise _key_file_error(path, f"can't be read: {error.strerror}") from error
        if mode & 0o077:
            raise _key_file_error(
                path,
                f"a private key must be readable by its owner alone (mode 0600), found "
                f"{mode:04o}; run: chmod 600 {path}",
            )
        try:
            private_key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise _key_file_error(path, f"not an unencrypted PEM private key: {error}") from None
        if not isinstance(private_key, Ed25519PrivateKey):
            raise _key_file_error(
                path, f"expected an Ed25519 key, found {type(private_key).__name__}"
            )
        return cls(private_key)

    def sign(self, payload: bytes, *, kind: str = PAYLOAD_TYPE) -> Signature:
        """Sign a record's payload, or one of another payload type."""
        return Signature(self.key_id, self._private_key.sign(signed_bytes(payload, kind=kind)))

    def __repr__(self) -> str:
        return f"Signer({self.key_id})"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key, its roles, and the time from which it is retired."""

    public_key: VerifyKey
    roles: frozenset[Role]
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """The trusted keys by key id. A loaded trust knows its file, so that it can notice a change."""

    keys: Mapping[str, TrustedKey]
    where: str = "trust"
    file: Path | None = field(default=None, compare=False)
    stamp: tuple[int, int, int] | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: Path | str) -> "Trust":
        """Read a trust file. Raises: TrustError (unreadable), FormatError (names the field)."""
        where = str(path)
        try:
            with open(path, "rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                data = file.read()
        except OSError as error:
            raise TrustError(
                f"the trust file can't be read: {error.strerror}", check="trust", where=where
            ) from error
        document = decode_json(data, where=where)
        keys = {name: _trusted_key(name, value, where) for name, value in document.items()}
        return cls(MappingProxyType(keys), where, Path(path).absolute(), stamp)

    def current(self) -> "Trust":
        """This trust, read again if its file has changed. So running processes know a new key, and
        refuse a retired one, without a restart.

        Raises: as `load`.
        """
        if self.file is None:
            return self
        try:
            if _stamp(os.stat(self.file)) == self.stamp:
                return self
        except OSError:
            pass  # `load` raises the better error
        return Trust.load(self.file)

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change with any key, role or retirement."""
        keys: dict[str, Json] = {}
        for name, key in self.keys.items():
            not_after = encode_time(key.not_after) if key.not_after else None
            keys[name] = [bytes(key.public_key).hex(), [*sorted(key.roles)], not_after]
        return hashlib.sha256(encode_json(keys)).hexdigest()

    def verify(
        self,
        payload: bytes,
        signatures: Iterable[Signature],
        *,
        role: Role,
        at: datetime | None = None,
        where: str = "record",
    ) -> None:
        """Check that every signature is good and that one is by a key with `role`.

        `at` is the time that the payload claims, held against the keys' `not_after`.

        Raises: TrustError.
        """
        keys = [self.signer_of(payload, signature, where=where) for signature in signatures]
        self.check_role(keys, role=role, at=at, where=where)

    def signer_of(
        self, payload: bytes, signature: Signature, *, where: str, kind: str = PAYLOAD_TYPE
    ) -> TrustedKey:
        """The trusted key that made `signature`. Raises: TrustError."""
        key = self.keys.get(signature.key_id)
        if key is None:
            raise TrustError(
                f"signed with key {signature.key_id[:32]!r}, which {self.where} doesn't list",
                check="key",
                where=where,
            )
        try:
            key.public_key.verify(signed_bytes(payload, kind=kind), signature.signature)
        except (BadSignatureError, LengthError):
            raise TrustError(
                f"the signature of key {signature.key_id} doesn't fit the bytes",
                check="signature",
                where=where,
            ) from None
        return key

    def check_role(
        self, keys: Iterable[TrustedKey], *, role: Role, at: datetime | None, where: str
    ) -> None:
        """Check that one of `keys` has the role and had not been retired at `at`."""
        holders = [key for key in keys if role in key.roles]
        if not holders:
            raise TrustError(
                f"a key with the role {role} must sign this, and none did",
                check="role",
                where=where,
            )
        if at is not None and all(
            key.not_after is not None and at > key.not_after for key in holders
        ):
            raise TrustError(
                f"the {role}'s key was retired before {encode_time(at)}",
                check="retired",
                where=where,
            )


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def key_id(public_key: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of the 32 raw bytes."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def init_keys(directory: Path | str) -> None:
    """Make one key per role and the trust file, where there is no trust file yet.

    Several processes may call this at once, and the next call completes what a crash left. Each
    file appears whole or not at all. Of two keys for one role the first is kept. The trust file
    comes last and lists the keys that were kept. An existing trust file stays as it is.

    Raises: TrustError when the directory can't be used.
    """
    directory = Path(directory)
    try:
        make_folder(directory, mode=0o700)
        if (directory / TRUST_FILE).exists():
            return
        for role in ROLES:
            create_private_key(directory / f"{role}.pem")
        entries: dict[str, Json] = {}
        for role in ROLES:
            signer = Signer.load(directory / f"{role}.pem")
            entries[signer.key_id] = {
                "public_key": base64.b64encode(signer.public_key).decode(),
                "roles": [role],
                "not_after": None,
            }
        with suppress(FileExistsError):
            write_durably(directory / TRUST_FILE, encode_json(entries), replace=False)
    except OSError as error:
        raise TrustError(
            f"keys can't be made: {error.strerror}", check="key file", where=str(directory)
        ) from error


def create_private_key(path: Path) -> None:
    """A new private key in a file of its own, durable, mode 0600. An existing file stays as it is.

    Raises: OSError.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with suppress(FileExistsError):
        write_durably(path, pem, mode=0o600, replace=False)


def _trusted_key(name: str, value: Any, where: str) -> TrustedKey:
    fields = Fields(value, where=where, path=f"{name}.")
    encoded = fields.free_text("public_key", at_least=1, at_most=64)
    roles = [cast(Role, role) for role in fields.texts("roles", _ROLE, at_least=1)]
    not_after = None if fields.is_null("not_after") else fields.time("not_after")
    fields.finish()
    try:
        public_key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        public_key = b""
    if len(public_key) != 32:
        fields.refuse("public_key", f"expected 32 bytes in base64, found {encoded!r}")
    if key_id(public_key) != name:
        fields.refuse("public_key", f"belongs to key id {key_id(public_key)}")
    return TrustedKey(VerifyKey(public_key), frozenset(roles), not_after)


def _key_file_error(path: Path, problem: str) -> TrustError:
    return TrustError(problem, check="key file", where=str(path))
