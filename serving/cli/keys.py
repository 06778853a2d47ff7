"""`lethe keys`: the signing keys of this installation, and what each may sign."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from registry.log.ledger import utc_now
from registry.schema import encode_time
from registry.signing.keys import ROLES, TRUST_FILE, Signer, Trust, init_keys
from registry.signing.rotation import OVERLAP, rotate_key
from serving.cli import registry_show
from serving.cli.terminal import Config, Json, fail, out, plain_errors, print_json
from serving.config.home import home_of
from serving.config.sources import load_settings


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(no_args_is_help=True, help="The signing keys and who may sign what.")
    group.command()(init)
    group.command("list")(list_)
    group.command()(rotate)
    app.add_typer(group, name="keys")


def init(config: Config = None, as_json: Json = False) -> None:
    """Make a key for each role and the trust file, unless they exist."""
    with plain_errors():
        directory = home_of(load_settings(config)).keys
        init_keys(directory)
        _tell(directory, as_json=as_json)


def list_(config: Config = None, as_json: Json = False) -> None:
    """List the trusted keys: roles, when each is retired, and where its private half is."""
    with plain_errors():
        _tell(home_of(load_settings(config)).keys, as_json=as_json)


def rotate(
    role: Annotated[str, typer.Argument(help=f"one of {', '.join(ROLES)}")],
    overlap: Annotated[
        float, typer.Option("--overlap", min=0, help="hours that the old key stays valid")
    ] = OVERLAP.total_seconds() / 3600,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give a role a new key; the old one is retired after the overlap."""
    with plain_errors():
        chosen = next((known for known in ROLES if known == role), None)
        if chosen is None:
            fail(f"there is no role {role!r}; expected one of {', '.join(ROLES)}")
        directory = home_of(load_settings(config)).keys
        done = rotate_key(directory, chosen, now=utc_now(), overlap=timedelta(hours=overlap))
        view = {**asdict(done), "not_after": encode_time(done.not_after)}
        print_json(view) if as_json else registry_show.rotation(out, view)


def _tell(directory: Path, *, as_json: bool) -> None:
    trusted = Trust.load(directory / TRUST_FILE)
    paths = [path for role in ROLES if (path := directory / f"{role}.pem").exists()]
    here = {Signer.load(path).key_id: str(path) for path in paths}
    rows = [
        {
            "key": key_id,
            "roles": sorted(key.roles),
            "not_after": encode_time(key.not_after) if key.not_after else None,
            "private_key": here.get(key_id),
        }
        for key_id, key in trusted.keys.items()
    ]
    print_json(rows) if as_json else registry_show.keys(out, rows)
