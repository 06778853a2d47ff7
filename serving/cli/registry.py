"""The commands that read the registry's files (log, show, diff, audit), and `hold`, which writes.

They need no server and no torch. Commands that may read a copy take `--registry` and `--trust`;
without them the settings say where the registry is. `serving.cli.upkeep` has the commands that
check and maintain a registry.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from registry.audit.erasure import audit as audit_subject
from registry.audit.erasure import audit_to_json
from registry.audit.history import difference, release_history
from registry.audit.page import audit_html, audit_text
from registry.audit.summary import entry_to_json
from registry.log.figures import report_figures
from registry.log.ledger import Ledger
from registry.publish.declarations import record_hold
from registry.records.record import Entry
from registry.schema import encode_time
from registry.subjects.subject_map import SubjectMap
from serving.cli import compact as compact_cli
from serving.cli import keys as keys_cli
from serving.cli import registry_show
from serving.cli import upkeep as upkeep_cli
from serving.cli.registry_access import RegistryPath, TrustPath, named, opened, subject_of
from serving.cli.terminal import Config, Json, fail, out, plain_errors, print_json
from serving.config.home import home_of, signer
from serving.config.sources import load_settings


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (log, show, diff, audit, hold):
        app.command()(command)
    upkeep_cli.add_to(app)
    compact_cli.add_to(app)
    keys_cli.add_to(app)


def log(
    start: Annotated[int, typer.Option("--from", min=1, help="first record to show")] = 1,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List every record: when, who, what and why. Subjects are shown as ids."""
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        ledger = Ledger(store, trusted)
        ledger.refresh()
        entries = list(ledger.records(start))
        print_json([entry_to_json(e) for e in entries]) if as_json else registry_show.log(
            out, entries
        )


def show(
    release: Annotated[int, typer.Argument(min=0, help="release number")],
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show a release: adapters with files and figures, what it masks, who made it and when."""
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        ledger = Ledger(store, trusted)
        state = ledger.refresh()
        found = release_history(ledger, release)
        subjects = SubjectMap(store)
        view = {
            "release": release,
            "kind": found.release.kind,
            "active": release == state.active,
            "parent": found.release.parent,
            "rolled_back_to": found.release.to,
            "job": found.release.job,
            "backbone": state.backbone,
            "adapters": [
                {
                    "adapter": adapter.id,
                    "job": adapter.job,
                    "folds": adapter.folds,
                    "trained_at": encode_time(adapter.at),
                    "subjects": named(adapter.subjects, subjects),
                    "files": {name: asdict(file) for name, file in adapter.files.items()},
                    "report": adapter.report,
                    "figures": report_figures(ledger, adapter.report),
                }
                for adapter in found.adapters
            ],
            "guard": named(sorted(found.release.guard), subjects),
            "defined": _act(found.defined),
            "activated": _act(found.activated),
            "confirmed": _act(found.confirmed),
            "swap_ms": found.release.confirmed_ms,
        }
        print_json(view) if as_json else registry_show.release(out, view)


def diff(
    before: Annotated[int, typer.Argument(min=0, help="release number")],
    after: Annotated[int, typer.Argument(min=0, help="release number")],
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show how two releases differ: in adapters and masked subjects."""
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        found = difference(Ledger(store, trusted).refresh(), before, after)
        subjects = SubjectMap(store)
        view = {
            **asdict(found),
            "guard_added": named(found.guard_added, subjects),
            "guard_removed": named(found.guard_removed, subjects),
        }
        print_json(view) if as_json else registry_show.difference(out, view)


def audit(
    subject: Annotated[str, typer.Argument(help="class, or the id of a subject")],
    html: Annotated[Path | None, typer.Option("--html", help="write a page to print")] = None,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the history of one erasure: times, actors, hashes, figures, confirmations."""
    with plain_errors():
        store, trusted = opened(config, registry, trust)
        ledger = Ledger(store, trusted)
        known = subject in ledger.refresh().subjects
        found = audit_subject(ledger, subject if known else subject_of(subject, store))
        if html is not None:
            try:
                html.write_text(audit_html(found), encoding="utf-8")
            except OSError as error:
                fail(f"{html} can't be written: {error.strerror}")
        if as_json:
            print_json(audit_to_json(found))
        elif html is None:
            registry_show.text(out, audit_text(found))


def hold(
    subject: Annotated[str, typer.Argument(help="class, or the id of a subject")],
    reason: Annotated[str, typer.Option("--reason", help="goes into the ledger; name nobody")],
    actor: Annotated[str, typer.Option("--actor", help="who orders it")],
    lift: Annotated[bool, typer.Option("--lift", help="end the hold")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Place a legal hold on a subject: nothing of it may be deleted. Needs the operator's key."""
    with plain_errors():
        store, trusted = opened(config, None, None, read_only=False)
        ledger = Ledger(store, trusted)
        known = subject in ledger.refresh().subjects
        subject_id = subject if known else subject_of(subject, store)
        record_hold(
            ledger,
            signer(home_of(load_settings(config)), "operator"),
            subjects=[subject_id],
            act="lifted" if lift else "placed",
            actor=actor,
            reason=reason,
            request_id=str(uuid.uuid4()),
        )
        (entry,) = ledger.records(ledger.state.seq)
        print_json(entry_to_json(entry)) if as_json else registry_show.log(out, [entry])


def _act(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    value = entry_to_json(entry)
    return {name: value[name] for name in ("seq", "at", "actor", "reason", "digest", "key_id")}
