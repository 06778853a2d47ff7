"""The files of an adapter: stored for the record that will name them, and fetched by it."""

from collections.abc import Mapping

from registry.bodies import FileRef, adapter_id
from registry.errors import IntegrityError, NotFoundError
from registry.ledger import Ledger, blob_key


def store_adapter(
    ledger: Ledger, files: Mapping[str, bytes], report: bytes
) -> tuple[str, dict[str, FileRef], str]:
    """Store an adapter's files and its report; the adapter's id, its files, the report's digest."""
    *digests, report_digest = ledger.put_blobs([*files.values(), report])
    refs = {
        name: FileRef(digest, len(data))
        for (name, data), digest in zip(files.items(), digests, strict=True)
    }
    return adapter_id(refs), refs, report_digest


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
