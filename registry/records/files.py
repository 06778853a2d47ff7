"""The files of an adapter, as records name them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from registry.schema import DIGEST, FILE_NAME, Fields, Json, encode_json


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of an adapter: the digest ("sha256:<hex>") and size in bytes of its blob."""

    digest: str
    size: int


def adapter_id(files: Mapping[str, FileRef]) -> str:
    """ "sha256:<hex>" over the canonical JSON of {name: [digest, size]}: same files, same id."""
    return f"sha256:{hashlib.sha256(encode_json(files_to_json(files))).hexdigest()}"


def files_to_json(files: Mapping[str, FileRef]) -> dict[str, Json]:
    return {name: [file.digest, file.size] for name, file in files.items()}


def files_from_fields(fields: Fields, name: str) -> dict[str, FileRef]:
    """Read {name: [digest, size]}, at least one file. Raises: FormatError."""
    entries = fields.mapping(name)
    if not entries:
        fields.refuse(name, "expected at least one file, found none")
    files = {}
    for file, entry in entries.items():
        if not FILE_NAME.fullmatch(file):
            fields.refuse(name, f"expected file names like {FILE_NAME.pattern}, found {file!r}")
        match entry:
            case [str(digest), int(size)] if (
                DIGEST.fullmatch(digest) and size >= 0 and not isinstance(size, bool)
            ):
                files[file] = FileRef(digest, size)
            case _:
                fields.refuse(f"{name}.{file}", f"expected [digest, size], found {entry!r}")
    return files
