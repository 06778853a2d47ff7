"""The files of a recorded adapter, fetched and held against the record that names them."""

from registry.errors import IntegrityError, NotFoundError
from registry.ledger import Ledger, blob_key


def adapter_files(ledger: Ledger, adapter: str) -> dict[str, bytes]:
    """All files of an adapter by name, each with the size and digest that its record says.

    Reads `ledger.state` as it is, without a refresh.

    Raises: NotFoundError (no record defines the adapter), IntegrityError (check "presence", "size"
    or "sha256"; a file is missing or changed), StoreError.
    """
    entry = ledger.state.adapters.get(adapter)
    if entry is None:
        raise NotFoundError(f"no record up to {ledger.state.seq} defines the adapter {adapter}")
    files = {}
    for name, file in entry.files.items():
        try:
            files[name] = ledger.get_blob(file.digest, size=file.size)
        except NotFoundError:
            raise IntegrityError(
                f"missing; it is the file {name} of the adapter {adapter}",
                check="presence",
                where=blob_key(file.digest),
            ) from None
    return files
