"""`lethe compact`: folds the active stack of adapters into one with the same outputs.

The command folds and records the adapter, with the publisher's key. The coordinator of a running
server finds the record and serves it like any release: prepared on every replica, activated,
confirmed.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from registry.errors import ConflictError
from registry.fold.state import AdapterEntry, State
from registry.log.adapters import adapter_files
from registry.log.figures import report_figures
from registry.log.ledger import Ledger
from registry.publish.compaction import record_compacted
from registry.schema import Json as JsonValue
from registry.signing.keys import Signer
from serving.cli import registry_show
from serving.cli.terminal import Config, Json, err, out, plain_errors, print_json
from serving.config.home import home_of, open_current_ledger, signer
from serving.config.settings import Settings
from serving.config.sources import load_settings
from serving.coordination.jobs import pending_jobs
from serving.coordination.unserved import releases_of

POLL_S = 0.25
PROBES = 16


@dataclass(frozen=True)
class Folded:
    """A recorded compaction. `difference`: the largest of a logit, as in
    `forgetting.adapter.compaction`."""

    entry: AdapterEntry
    rank: int
    bytes_before: int
    bytes_after: int
    difference: float


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(compact)


def compact(
    reason: Annotated[str, typer.Option("--reason", help="goes into the ledger; name nobody")] = "",
    actor: Annotated[str, typer.Option("--actor", help="who orders it")] = "operator",
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="seconds to wait until a server serves it")
    ] = 60.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fold the active stack of adapters into one. Needs the publisher's key."""
    with plain_errors():
        settings = load_settings(config)
        home = home_of(settings)
        ledger = open_current_ledger(home)
        check_foldable(ledger.state)
        folded = fold_active_stack(
            ledger, signer(home, "publisher"), settings, actor=actor, reason=reason
        )
        state = _await_served(ledger, folded.entry, seconds=wait)
        release = state.active if state.active_release.adapters == (folded.entry.id,) else None
        view = {
            "adapter": folded.entry.id,
            "folds": list(folded.entry.folds),
            "subjects": list(folded.entry.subjects),
            "rank": folded.rank,
            "bytes_before": folded.bytes_before,
            "bytes_after": folded.bytes_after,
            "difference": folded.difference,
            "release": release,
        }
        print_json(view) if as_json else registry_show.compaction(out, view)
        if release is None:
            err.print(
                f"recorded, but not served in {wait:g} s: a server serves it after its next "
                "start; the log of one that runs says what prevents it",
                highlight=False,
            )


def check_foldable(state: State) -> None:
    """Raises `ConflictError` if the active stack can't be compacted, with what to do instead."""
    stack = state.active_release.adapters
    if len(stack) < 2:
        raise ConflictError(
            f"release {state.active} has {len(stack)} adapters: there is nothing to compact"
        )
    if state.seal is not None:
        raise ConflictError("this registry is sealed; nothing of it is served any more")
    top = state.adapters[stack[-1]]
    if top.provisional and any(job.id == top.job for job in pending_jobs(state)):
        raise ConflictError(
            f"the top adapter is a closed form, and a compaction would keep it: wait until "
            f"{top.job} is trained, which takes it out"
        )
    for entry in state.adapters.values():
        served = [n for n in releases_of(state, entry.id) if state.releases[n].activated_at]
        if entry.folds == stack and served:
            raise ConflictError(
                f"this stack was compacted before, as release {served[-1]}: to serve that again, "
                f"run `lethe rollback {served[-1]}`"
            )


def fold_active_stack(
    ledger: Ledger, publisher: Signer, settings: Settings, *, actor: str, reason: str
) -> Folded:
    """Fold the stack of the active release, check that its outputs stay the same, and record it.

    Raises `BackboneError`, `RegistryError`, and `AdapterError` as
    `forgetting.adapter.compaction.compact` does.
    """
    # Imported here: torch takes seconds to load, and other commands on the registry don't need it.
    import torch

    from forgetting.adapter import compaction
    from forgetting.adapter.files import COMPACTION
    from forgetting.adapter.low_rank import from_files
    from serving.config.backbones import open_backbone

    backbone = open_backbone(settings)
    stack = ledger.state.active_release.adapters
    size = (PROBES, *backbone.spec.preprocess.input_size)
    made = compaction.compact(
        backbone,
        [from_files(adapter_files(ledger, adapter), backbone) for adapter in stack],
        stack_ids=stack,
        probes=torch.randn(size, generator=torch.Generator().manual_seed(0)),
    )
    bytes_after = sum(map(len, made.files.values()))
    report = {
        "method": COMPACTION,
        "folds": [*stack],
        "max_logit_difference": made.difference,
        "tolerance": compaction.TOLERANCE,
        "probes": made.probes,
        "rank": made.rank,
        "bytes_before": made.bytes_before,
        "bytes_after": bytes_after,
        **carried_figures([report_figures(ledger, ledger.state.adapters[a].report) for a in stack]),
    }
    entry = record_compacted(
        ledger,
        publisher,
        files=made.files,
        folds=stack,
        report=json.dumps(report, indent=1, sort_keys=True).encode() + b"\n",
        actor=actor,
        reason=reason,
        request_id=str(uuid.uuid4()),
    )
    return Folded(entry, made.rank, made.bytes_before, bytes_after, made.difference)


def carried_figures(reports: Sequence[dict[str, JsonValue]]) -> dict[str, JsonValue]:
    """The figures of a stack from its adapters' reports. A compaction keeps the outputs, so the
    figures hold for it too.

    Those of retained classes are the top adapter's, which was measured with all below it. That of
    forgotten classes is the worst of all adapters.
    """
    figures: dict[str, JsonValue] = {}
    for name in ("acc_f_weights", "acc_f_after"):
        worst = max(reports, key=lambda report: _value(report.get(name)), default={})
        figures |= {name: worst[name]} if name in worst else {}
    top = reports[-1] if reports else {}
    kept = ("acc_r_before", "acc_r_after")
    return {**figures, **{name: top[name] for name in kept if name in top}}


def _value(figure: Any) -> float:
    match figure:
        case {"value": int() | float() as value}:
            return float(value)
    return -1.0


def _await_served(
    ledger: Ledger,
    entry: AdapterEntry,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> State:
    """Wait until the compaction is served everywhere, for `seconds` at most; return the state.

    Raises `ConflictError` when it can't be served, because another stack is active by now.
    """
    deadline = clock() + seconds
    while True:
        state = ledger.refresh()
        served = state.active_release.adapters == (entry.id,)
        if served and state.confirmed == state.active:
            return state
        if not served and state.active_release.adapters != entry.folds:
            raise ConflictError("another stack is active by now; compact that")
        if clock() >= deadline:
            return state
        time.sleep(POLL_S)
