"""The console's page and files, and the routes that only the page uses.

The files are public, since they hold no data. Every number and name needs the operator's token.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import Response

from registry.audit.erasure import audit, audit_to_json
from registry.errors import NotFoundError
from registry.log.ledger import Ledger
from registry.schema import encode_time
from registry.subjects.subject_map import SubjectMap
from serving.api.console.erasures import erasures_view
from serving.api.console.files import HEADERS, PAGE, File, read_files
from serving.api.console.readings import drift_view, leak_view, replicas_view, watching_view
from serving.api.routes.access import AtDesk, Desk, operator_only
from serving.api.routes.problems import ProblemError
from serving.config.home import home_of, open_current_ledger, open_subjects
from serving.control.job_views import named
from serving.control.messages import Rejection
from serving.monitoring.metrics_page import look
from serving.monitoring.tally import Counts, Tally, entry, stack_name

router = APIRouter(tags=["console"])
pages = APIRouter(include_in_schema=False)
asked = APIRouter(prefix="/v1", dependencies=[Depends(operator_only)])

MONITOR_S = 3.0
COMMANDS = ("forget", "rollback", "restore", "suspend", "resume")
"""Commands that have a button in the console."""


# -- the page


def _files(request: Request) -> dict[str, File]:
    """The console's files by name, read at the first request."""
    held: dict[str, File] | None = getattr(request.app.state, "console", None)
    if held is None:
        held = request.app.state.console = read_files()
    return held


Files = Annotated[dict[str, File], Depends(_files)]
KnownTag = Annotated[str | None, Header(alias="If-None-Match")]


@pages.get("/console")
def page(files: Files, known: KnownTag = None) -> Response:
    """The console."""
    return _answer(files[PAGE], known)


@pages.get("/console/{name}")
def file(name: str, files: Files, known: KnownTag = None) -> Response:
    """A script, the style sheet or the icon of the console."""
    if name not in files:
        raise ProblemError(Rejection(404, "The console has no such file.", "Open /console."))
    return _answer(files[name], known)


def _answer(file: File, known: str | None) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if known == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)


# -- the routes that the page uses


@asked.get("/live")
async def live(request: Request, desk: AtDesk) -> dict[str, Any]:
    """Live evidence, and every replica's current counters."""
    try:
        page = await asyncio.wait_for(desk.monitor.page(None), MONITOR_S)
    except TimeoutError:
        raise ProblemError(
            Rejection(503, "The monitor gives no answer, so there are no live numbers.")
        ) from None
    now = await asyncio.to_thread(look, page.decode(), at=time.monotonic())
    counts, probed = await asyncio.to_thread(_counts, desk, request.app)
    heard = now.gauge("lethe_replicas")
    watching = watching_view(now)
    shadowed = watching is None or watching["posture"] == "shadow"
    return {
        "at": encode_time(datetime.now(UTC)),
        "share": desk.settings.monitor.share if shadowed else 0.0,
        "heard": 0 if heard is None else int(heard),
        "expected": desk.settings.replicas,
        "watching": watching,
        "leak": leak_view(now, counts),
        "canary": leak_view(now, probed, source="canary"),
        "drift": drift_view(now, counts),
        "replicas": replicas_view(now),
        "commands": await asyncio.to_thread(_commands, request.app),
    }


@asked.get("/erasures")
async def erasures(request: Request, desk: AtDesk) -> dict[str, Any]:
    """Every class for which an erasure was requested, how far it is, and the retained classes."""
    return await asyncio.to_thread(_erasures, desk, request.app)


@asked.get("/audit/{subject}")
async def audit_card(subject: str, request: Request, desk: AtDesk) -> dict[str, Any]:
    """The history of one erasure from the ledger: times, actors, digests, figures."""
    return await asyncio.to_thread(_audit, subject, desk, request.app)


def _counts(desk: Desk, app: FastAPI) -> tuple[Counts, Counts]:
    """What shadow samples and probes found for the active stack, from the monitor's file."""
    ledger, _ = _registry(desk, app)
    state = ledger.refresh()
    stack = stack_name(state.releases[state.active].adapters)
    tally = Tally.load(home_of(desk.settings).evidence)
    return tally.total(stack), tally.total(entry(stack, "canary"))


def _commands(app: FastAPI) -> list[str]:
    """Those of `COMMANDS` for which this server has a route. The first call is slow: it builds the
    OpenAPI document."""
    paths = app.openapi()["paths"]
    return [command for command in COMMANDS if "post" in paths.get(f"/v1/{command}", {})]


def _registry(desk: Desk, app: FastAPI) -> tuple[Ledger, SubjectMap]:
    """The ledger and the subject map, opened for the console alone, so that reading delays no
    swap."""
    held: tuple[Ledger, SubjectMap] | None = getattr(app.state, "registry", None)
    if held is None:
        home = home_of(desk.settings)
        ledger = open_current_ledger(home, read_only=True)
        held = app.state.registry = ledger, open_subjects(home, read_only=True)
    return held


def _erasures(desk: Desk, app: FastAPI) -> dict[str, Any]:
    ledger, subjects = _registry(desk, app)
    state = ledger.refresh()
    rows = erasures_view(state, class_of=subjects.class_of)
    gone = {row["class"] for row in rows if row["standing"] != "restored"}
    return {
        "registry_seq": state.seq,
        "sealed": state.seal is not None,
        "erasures": rows,
        "retained": [name for name in desk.classes if name not in gone],
    }


def _audit(subject: str, desk: Desk, app: FastAPI) -> dict[str, Any]:
    ledger, subjects = _registry(desk, app)
    try:
        found = audit(ledger, subject)
    except NotFoundError:
        raise ProblemError(
            Rejection(
                404, f"No record names the subject {subject[:64]}.", "/v1/erasures lists them all."
            )
        ) from None
    return {"class": named(subject, subjects.class_of), **audit_to_json(found)}


router.include_router(pages)
router.include_router(asked)
