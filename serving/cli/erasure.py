"""`lethe tombstone` and `lethe seal`, which make an erasure final.

They work on the registry's files, so they need no server, but the eraser's or the operator's key.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from registry.errors import NotFoundError
from registry.fold.state import State
from registry.store.directory import open_store
from registry.subjects.personal import bury
from registry.subjects.subject_map import SubjectMap
from serving.cli.terminal import Config, Json, out, plain_errors, print_json
from serving.config.home import home_of, open_current_ledger, signer
from serving.config.sources import load_settings

Whom = Annotated[str, typer.Argument(metavar="CLASS|SUBJECT", help="class, or id of a subject")]
Reason = Annotated[str, typer.Option("--reason", help="goes into the ledger; name nobody")]
Actor = Annotated[str, typer.Option("--actor", help="who orders it")]
SUBJECT_ID = re.compile(r"[0-9a-f]{32}")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(tombstone)
    app.command()(seal)


def tombstone(
    whom: Whom,
    reason: Reason,
    actor: Actor = "eraser",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete what the registry keeps of a subject: images, prototypes, and its class name.

    The records stay and still verify, but their id no longer leads to a class. Replicas need the
    name of a class that they mask or have forgotten: restore the class first, or seal.
    """
    with plain_errors():
        home = home_of(load_settings(config))
        ledger = open_current_ledger(home)
        store = open_store(home.registry)
        subject = subject_named(whom, SubjectMap(store), ledger.state)
        found = bury(
            ledger,
            store,
            signer(home, "eraser"),
            subject=subject,
            actor=actor,
            reason=reason,
            request_id=str(uuid.uuid4()),
        )
        if as_json:
            print_json({"subject": subject, "seq": ledger.state.seq, **asdict(found)})
            return
        gone = f"{len(found.files)} files" if found.files else "no files"
        rest = (
            "its class stays known, since replicas still need it"
            if found.map_entry_kept
            else "the id leads to no class any more"
        )
        out.print(
            f"record {ledger.state.seq}: {subject} has a tombstone; {gone} were deleted, {rest}",
            highlight=False,
            soft_wrap=True,
        )


def seal(
    to: Annotated[Path, typer.Option("--out", help="folder to write the new backbone to")],
    reason: Reason,
    actor: Actor = "operator",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make the active release into a new backbone without the forgotten classes, for good.

    The registry ends with that. Replicas go on serving its active release until they are started
    again with the new backbone and a registry of its own.
    """
    with plain_errors():
        from serving.cli.sealed_release import seal_registry

        settings = load_settings(config)
        found = seal_registry(settings, to, actor=actor, reason=reason)
        if as_json:
            print_json({"out": str(to), **asdict(found)})
            return
        hidden = (
            "its head took up a feature edit: what the head reads still tells the forgotten "
            "classes apart, so /v1/embed answers 501\n"
            if found.edit_in_head
            else ""
        )
        out.print(
            f"release {found.release} is sealed into {to}: {found.classes} classes, without "
            f"{found.left_out} forgotten ones, {found.backbone}\n{hidden}"
            "serve it with these settings and a data set without those classes; then the old "
            "backbone and registry may be deleted:\n"
            f'  registry = "a new folder"\n  [backbone]\n  directory = "{to}"',
            highlight=False,
            soft_wrap=True,
        )


def subject_named(whom: str, subjects: SubjectMap, state: State) -> str:
    """The subject of a class, or the one with this id. Raises `NotFoundError`."""
    if whom in state.subjects:
        return whom
    subject = None if SUBJECT_ID.fullmatch(whom) else subjects.find(whom)
    if subject is None or subject not in state.subjects:
        raise NotFoundError(
            f"{whom!r} is neither a class in the subject map nor a subject in the ledger"
        )
    return subject
