"""The commands that check and maintain a registry: verify, fsck, gc, export, import.

They need no server and no torch, and also work on a copy (`--registry`, `--trust`).
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from registry.errors import CheckError
from registry.log.highwater import Mark, raise_mark, read_mark
from registry.log.ledger import Ledger, utc_now
from registry.signing.keys import Trust
from registry.store.contract import Store
from registry.store.directory import open_store
from registry.store.durable_file import durable_file
from registry.upkeep.archive import export_archive, import_archive
from registry.upkeep.collection import GRACE, collect
from registry.upkeep.verification import Verification
from registry.upkeep.verification import verify as verify_registry
from serving.cli import registry_show
from serving.cli.registry_access import RegistryPath, TrustPath, opened, trust_path
from serving.cli.terminal import Config, Json, err, fail, out, plain_errors, print_json
from serving.config.home import home_of, signer
from serving.config.sources import load_settings

AtLeast = Annotated[
    int, typer.Option("--at-least", min=0, help="number of a record that the registry must have")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (verify, fsck, gc, export):
        app.command()(command)
    app.command("import")(import_)


def verify(
    at_least: AtLeast = 0,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check every record and every blob, offline, here or on a copy. Exit code 1: not sound.

    This installation's own registry is also compared with the newest record ever seen of it.
    """
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        home = home_of(load_settings(config)) if registry is None else None
        # A copy may be older than this installation's registry.
        mark = read_mark(home.highwater, trusted) if home is not None else None
        found = _examined(store, trusted, at_least=at_least, mark=mark, quiet=as_json)
        if home is not None and not found.problems and (home.keys / "operator.pem").exists():
            raise_mark(
                home.highwater,
                seq=found.seq,
                head=found.head,
                signer=signer(home, "operator"),
                trust=trusted,
            )
        print_json(_verification(found)) if as_json else registry_show.verification(out, found)
        _refuse_problems(found.problems)


def fsck(
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Do what `verify` does, and list harmless files: orphans, strays, leftovers of crashes."""
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        found = _examined(store, trusted, quiet=as_json)
        leftovers = store.leftovers(before=utc_now(), delete=False)
        if as_json:
            print_json({**_verification(found), "leftovers": leftovers})
        else:
            registry_show.verification(out, found)
            registry_show.litter(out, found, leftovers)
        _refuse_problems(found.problems)


def gc(
    grace: Annotated[
        float, typer.Option("--grace", min=1, help="hours; keep anything younger")
    ] = GRACE.total_seconds() / 3600,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only list what would be deleted")
    ] = False,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete what crashes left: blobs that no record names, images whose request was never
    recorded, and temporary files."""
    with plain_errors():
        store, trusted = opened(config, registry, trust, read_only=dry_run)
        found = collect(
            store,
            Ledger(store, trusted),
            now=utc_now(),
            grace=timedelta(hours=grace),
            dry_run=dry_run,
        )
        if as_json:
            print_json({**asdict(found), "deleted": not dry_run})
        else:
            registry_show.collection(out, found, dry_run=dry_run)


def export(
    file: Annotated[Path, typer.Argument(help="archive to write")],
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write records and blobs to one tar file. The same registry gives the same bytes.

    The subject map is not exported.
    """
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        try:
            with durable_file(file) as target:
                state = export_archive(store, Ledger(store, trusted), target=target)
        except OSError as error:
            fail(f"{file} can't be written: {error.strerror}")
        _tell_state(f"{file}", state.seq, state.head, as_json=as_json)


def import_(
    file: Annotated[Path, typer.Argument(help="archive to read")],
    registry: Annotated[
        str, typer.Option("--registry", help="an empty folder or bucket, or an earlier copy")
    ],
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Verify an archive member by member, and store its contents."""
    with plain_errors():
        trusted = Trust.load(trust_path(config, trust))
        try:
            with open(file, "rb") as source:
                state = import_archive(source, open_store(registry), trust=trusted)
        except OSError as error:
            fail(f"{file} can't be read: {error.strerror}")
        _tell_state(f"{registry}", state.seq, state.head, as_json=as_json)


def _examined(
    store: Store,
    trusted: Trust,
    *,
    quiet: bool,
    at_least: int = 0,
    mark: Mark | None = None,
) -> Verification:
    with registry_show.examining(err, quiet=quiet) as progress:
        return verify_registry(store, trusted, at_least=at_least, mark=mark, progress=progress)


def _verification(found: Verification) -> dict[str, Any]:
    return {
        "sound": not found.problems,
        "seq": found.seq,
        "head": found.head,
        "blobs": found.blobs,
        "blob_bytes": found.blob_bytes,
        "problems": [
            {"where": p.where, "check": p.check, "problem": p.message} for p in found.problems
        ],
        "orphans": found.orphans,
        "strays": found.strays,
    }


def _refuse_problems(problems: tuple[CheckError, ...]) -> None:
    if problems:
        fail(f"not sound: {len(problems)} problems, the first: {problems[0]}")


def _tell_state(where: str, seq: int, head: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"path": where, "seq": seq, "head": head})
    else:
        registry_show.position(out, where, seq=seq, head=head)
