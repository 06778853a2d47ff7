"""The files of an adapter: how a record names them, and how to fetch them."""

from collections.abc import Mapping
from dataclasses import dataclass

from registry.errors import IntegrityError, NotFoundError
from registry.log.ledger import Ledger, blob_key
from registry.records.files import FileRef, adapter_id
from registry.records.record import digest_of


@dataclass(frozen=True, slots=True)
class NewFiles:
    """The files and the report of an adapter that is to be recorded.

    `refs`: the files as the record names them. `blobs`: what is to be stored, by digest.
    """

    adapter: str
    refs: Mapping[str, FileRef]
    report: str
    blobs: Mapping[str, bytes]


def new_files(files: Mapping[str, bytes], report: bytes) -> NewFiles:
    """Compute every digest, each once."""
    refs = {name: FileRef(digest_of(data), len(data)) for name, data in files.items()}
    blobs = {refs[name].digest: data for name, data in files.items()}
    digest = digest_of(report)
    return NewFiles(adapter_id(refs), refs, digest, {**blobs, digest: report})


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
