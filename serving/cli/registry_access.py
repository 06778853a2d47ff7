"""Finds the registry, the trust file and the subjects for commands that work on registry files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from registry.errors import NotFoundError, StoreError
from registry.log.ledger import FORMAT_KEY, LOG_PREFIX
from registry.signing.keys import TRUST_FILE, Trust
from registry.store.contract import Store
from registry.store.directory import open_store
from registry.subjects.subject_map import SubjectMap
from serving.config.home import home_of
from serving.config.sources import load_settings

RegistryPath = Annotated[
    str | None,
    typer.Option("--registry", help="a folder, or s3://, gs://, az:// [of the settings]"),
]
TrustPath = Annotated[Path | None, typer.Option("--trust", help="trust file [HOME/keys]")]


def opened(
    config: Path | None, registry: str | None, trust: Path | None, *, read_only: bool = True
) -> tuple[Store, Trust]:
    """The store and the trust file that the options name, or else those of the settings.

    Raises: NotFoundError (there is no registry), StoreError, TrustError.
    """
    where = registry or str(home_of(load_settings(config)).registry)
    if "://" in where:
        store = open_store(where, read_only=read_only)
    else:
        _check_folder(Path(where))
        store = open_store(where)
    return store, Trust.load(trust_path(config, trust))


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise NotFoundError(f"there is no registry at {path}; `lethe serve` makes one")
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise StoreError(f"the registry {path} can't be read: {error.strerror}") from None
    if names and not names & {FORMAT_KEY, LOG_PREFIX.rstrip("/"), "blobs", "subjects"}:
        raise NotFoundError(f"{path} is no registry: it has neither {FORMAT_KEY} nor {LOG_PREFIX}")


def trust_path(config: Path | None, trust: Path | None) -> Path:
    return trust or home_of(load_settings(config)).keys / TRUST_FILE


def named(ids: Iterable[str], subjects: SubjectMap) -> list[dict[str, str | None]]:
    """Each id with its class; None if the subject map is absent, unreadable or has no such id."""

    def class_of(subject: str) -> str | None:
        try:
            return subjects.class_of(subject)
        except (NotFoundError, StoreError):
            return None

    return [{"subject": subject, "class": class_of(subject)} for subject in ids]


def subject_of(class_name: str, store: Store) -> str:
    subject = SubjectMap(store).find(class_name) if class_name else None
    if subject is None:
        raise NotFoundError(
            f"{class_name!r} is neither a class in the subject map nor a subject in the ledger"
        )
    return subject
