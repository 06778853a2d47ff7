"""The `lethe` commands that read and keep the registry's own files: no server, no torch.

log, show, diff, audit, verify, fsck, gc, export, import, hold. They take `--registry` and `--trust`
where a copy may be meant; otherwise the settings say where things are.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from registry import publish
from registry.archive import export_archive, import_archive
from registry.audit import audit as audit_subject
from registry.audit import audit_to_json
from registry.audit_page import audit_html, audit_text
from registry.errors import CheckError, NotFoundError, StoreError
from registry.figures import report_figures
from registry.highwater import Mark, raise_mark, read_mark
from registry.history import difference, release_history
from registry.keys import TRUST_FILE, Trust
from registry.ledger import FORMAT_KEY, LOG_PREFIX, Ledger, utc_now
from registry.record import Entry
from registry.schema import encode_time
from registry.store import Store, open_store
from registry.subjects import SubjectMap
from registry.summary import entry_to_json
from registry.upkeep import GRACE, collect
from registry.verification import Verification
from registry.verification import verify as verify_registry
from serving import keys_cli, registry_show
from serving.home import home_of, signer
from serving.settings import load_settings
from serving.terminal import Config, Json, err, fail, out, plain_errors, print_json

RegistryPath = Annotated[
    str | None,
    typer.Option("--registry", help="a folder, or s3://, gs://, az:// [of the settings]"),
]
TrustPath = Annotated[Path | None, typer.Option("--trust", help="trust file [HOME/keys]")]
AtLeast = Annotated[
    int, typer.Option("--at-least", min=0, help="a record number that was seen before")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (log, show, diff, audit, verify, fsck, gc, export, hold):
        app.command()(command)
    app.command("import")(import_)
    keys_cli.add_to(app)


def log(
    start: Annotated[int, typer.Option("--from", min=1, help="first record to show")] = 1,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Every record: when, who, what and why. Subjects stay ids."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
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
    """One release: its adapters, their files and figures, what it masks, who made it and when."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
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
                    "trained_at": encode_time(adapter.at),
                    "subjects": _named(adapter.subjects, subjects),
                    "files": {name: asdict(file) for name, file in adapter.files.items()},
                    "report": adapter.report,
                    "figures": report_figures(ledger, adapter.report),
                }
                for adapter in found.adapters
            ],
            "guard": _named(sorted(found.release.guard), subjects),
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
    """What one release has and lacks against another: adapters and masked subjects."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
        found = difference(Ledger(store, trusted).refresh(), before, after)
        subjects = SubjectMap(store)
        view = {
            **asdict(found),
            "guard_added": _named(found.guard_added, subjects),
            "guard_removed": _named(found.guard_removed, subjects),
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
    """The whole life of one erasure: times, actors, hashes, figures, confirmations."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
        ledger = Ledger(store, trusted)
        known = subject in ledger.refresh().subjects
        found = audit_subject(ledger, subject if known else _subject_of(subject, store))
        if html is not None:
            try:
                html.write_text(audit_html(found), encoding="utf-8")
            except OSError as error:
                fail(f"{html} can't be written: {error.strerror}")
        if as_json:
            print_json(audit_to_json(found))
        elif html is None:
            registry_show.text(out, audit_text(found))


def verify(
    at_least: AtLeast = 0,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check every record and every blob, offline, here or on a copy. Exit code 1: not sound.

    This installation's own registry is also held against the newest record ever seen of it.
    """
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
        home = home_of(load_settings(config)) if registry is None else None
        # A copy may rightly be older than what was seen here.
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
    """`verify`, and what lies about without harm: orphans, strays, leftovers of killed writers."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
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
        float, typer.Option("--grace", min=1, help="hours; far longer than any publish takes")
    ] = GRACE.total_seconds() / 3600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    registry: RegistryPath = None,
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Delete what crashes left: blobs that no record names, and temporary files."""
    with plain_errors():
        store, trusted = _opened(config, registry, trust, read_only=dry_run)
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
    """Write records and blobs as one tar, the same bytes for the same registry.

    The subject map stays where it is.
    """
    with plain_errors():
        store, trusted = _opened(config, registry, trust)
        # Written aside, so that a failure leaves no half an archive under the name.
        aside = file.with_name(f".tmp-{os.getpid()}-{file.name}")
        try:
            with open(aside, "wb") as target:
                state = export_archive(store, Ledger(store, trusted), target=target)
                target.flush()
                os.fsync(target.fileno())
            os.replace(aside, file)
        except OSError as error:
            fail(f"{file} can't be written: {error.strerror}")
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()
        _tell_state(f"{file}", state.seq, state.head, as_json=as_json)


def hold(
    subject: Annotated[str, typer.Argument(help="class, or the id of a subject")],
    reason: Annotated[str, typer.Option("--reason", help="stands in the ledger; name nobody")],
    actor: Annotated[str, typer.Option("--actor", help="who orders it")],
    lift: Annotated[bool, typer.Option("--lift", help="end the hold")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Place a legal hold on a subject: nothing of it may be deleted. Needs the operator's key."""
    with plain_errors():
        store, trusted = _opened(config, None, None, read_only=False)
        ledger = Ledger(store, trusted)
        known = subject in ledger.refresh().subjects
        subject_id = subject if known else _subject_of(subject, store)
        publish.hold(
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


def import_(
    file: Annotated[Path, typer.Argument(help="archive to read")],
    registry: Annotated[
        str, typer.Option("--registry", help="an empty folder or bucket, or an earlier copy")
    ],
    trust: TrustPath = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Verify an archive, member by member, and store what it holds."""
    with plain_errors():
        trusted = Trust.load(_trust_path(config, trust))
        try:
            with open(file, "rb") as source:
                state = import_archive(source, open_store(registry), trust=trusted)
        except OSError as error:
            fail(f"{file} can't be read: {error.strerror}")
        _tell_state(f"{registry}", state.seq, state.head, as_json=as_json)


def _opened(
    config: Path | None, registry: str | None, trust: Path | None, *, read_only: bool = True
) -> tuple[Store, Trust]:
    where = registry or str(home_of(load_settings(config)).registry)
    if "://" in where:
        store = open_store(where, read_only=read_only)
    else:
        _check_folder(Path(where))
        store = open_store(where)
    return store, Trust.load(_trust_path(config, trust))


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise NotFoundError(f"there is no registry at {path}; `lethe serve` makes one")
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise StoreError(f"the registry {path} can't be read: {error.strerror}") from None
    if names and not names & {FORMAT_KEY, LOG_PREFIX.rstrip("/"), "blobs", "subjects"}:
        raise NotFoundError(f"{path} is no registry: it has neither {FORMAT_KEY} nor {LOG_PREFIX}")


def _trust_path(config: Path | None, trust: Path | None) -> Path:
    return trust or home_of(load_settings(config)).keys / TRUST_FILE


def _named(ids: Iterable[str], subjects: SubjectMap) -> list[dict[str, str | None]]:
    """Ids with their classes, where the map is here, may be read, and still has them."""

    def class_of(subject: str) -> str | None:
        try:
            return subjects.class_of(subject)
        except (NotFoundError, StoreError):
            return None

    return [{"subject": subject, "class": class_of(subject)} for subject in ids]


def _subject_of(class_name: str, store: Store) -> str:
    subject = SubjectMap(store).find(class_name) if class_name else None
    if subject is None:
        raise NotFoundError(
            f"{class_name!r} is neither a class in the subject map nor a subject in the ledger"
        )
    return subject


def _act(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    value = entry_to_json(entry)
    return {name: value[name] for name in ("seq", "at", "actor", "reason", "digest", "key_id")}


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
