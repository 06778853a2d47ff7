"""What can go wrong in the registry, one class per thing a caller can do about it.

A caller that only counts failures catches `CheckError` and labels by its `check`.
"""


class RegistryError(Exception):
    """Base of everything this package raises on purpose."""


class StoreError(RegistryError):
    """The storage itself failed (disk full, no permission): nothing is known to be wrong with
    the data, and trying again later may work."""


class AlreadyExistsError(RegistryError):
    """`create` found the key taken. Nothing was changed."""


class NotFoundError(RegistryError):
    """There is no such key, blob, adapter, release, job or subject."""


class ConflictError(RegistryError):
    """The request contradicts the registry's present state; the message says how."""


class CheckError(RegistryError):
    """Stored data failed a check and must not be used.

    `check` names the check ("signature", "prev", "sha256", ...), `where` the object that failed
    it (a store key or a file path).
    """

    def __init__(self, message: str, *, check: str, where: str) -> None:
        super().__init__(f"{where}: {message} (check: {check})")
        self.message = message
        self.check = check
        self.where = where

    def __reduce__(self) -> tuple[object, ...]:
        # The default would replay __init__ without its keyword arguments when an error crosses a
        # process boundary.
        return _rebuilt, (type(self), self.message, self.check, self.where)


class IntegrityError(CheckError):
    """Bytes or order are not what the chain or a digest says: damage, replay or tampering."""


class TrustError(CheckError):
    """A signature, key or role is not good enough."""


class FormatError(CheckError):
    """Well preserved, but not in the form this version reads; the message names the field."""


def _rebuilt(kind: type[CheckError], message: str, check: str, where: str) -> CheckError:
    return kind(message, check=check, where=where)
