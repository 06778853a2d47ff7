"""An audit for people: as plain text, and as one HTML page to print."""

from collections.abc import Iterator
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from registry.audit.erasure import Audit, Evidence, Milestone
from registry.audit.summary import summary
from registry.fold.state import AdapterEntry
from registry.log.figures import figure_text
from registry.records.record import Entry
from registry.records.releases import Confirmed
from registry.schema import encode_time

STANDINGS = {
    "requested": "Requested; not masked on every replica yet.",
    "masked": "Masked on every replica; the weights have not forgotten it.",
    "forgotten": "Forgotten by the weights, and masked, on every replica.",
    "restored": "The erasure was ended.",
    "sealed": "Forgotten; the weights that knew it were folded into a new backbone.",
}


def audit_text(found: Audit) -> str:
    """Plain text, ends with a newline."""
    lines = [
        f"Subject   {found.subject}",
        f"Standing  {STANDINGS[found.standing]}",
        f"Backbone  {found.backbone}",
        f"Ledger    {found.seq} records, head {found.head}",
        "",
        "Milestones",
    ]
    for milestone in found.milestones:
        at = encode_time(milestone.entry.record.at)
        lines.append(f"  {at}  {_reached(milestone)}")
    for evidence in found.evidence:
        lines += ["", f"Adapter {evidence.adapter.id} ({_origin(evidence.adapter)})"]
        lines += [f"  {name}: {text}" for name, text in _facts(evidence)]
    lines += ["", "Records"]
    for entry in found.entries:
        record = entry.record
        lines.append(f"  {record.seq}  {encode_time(record.at)}  {record.type}  {record.actor}")
        lines += [f"      {text}" for text in _sentences(entry)]
        lines.append(f"      {entry.digest}, signed with {entry.key_id}")
    return "\n".join(lines) + "\n"


def audit_html(found: Audit) -> str:
    """One page of HTML 5 that prints well and refers to nothing outside itself."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "time": encode_time,
        "reached": _reached,
        "facts": _facts,
        "sentences": _sentences,
    }
    template = files("registry.audit").joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(template)
    return page.render(audit=found, standing=STANDINGS[found.standing])


def _sentences(entry: Entry) -> list[str]:
    record = entry.record
    lines = [summary(record.body)]
    if isinstance(record.body, Confirmed):
        lines += [f"{name}: {how}" for name, how in sorted(record.body.members.items())]
    if record.reason:
        lines.append(f"reason: {record.reason}")
    lines.append(f"request: {record.request_id}")
    return lines


def _facts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    adapter = evidence.adapter
    yield "recorded", encode_time(adapter.at)
    if adapter.folds:
        yield "stands for", ", ".join(adapter.folds)
    else:
        yield "trained on", f"a stack of {len(adapter.stack)} adapters"
    for name, file in adapter.files.items():
        yield name, f"{file.digest}, {file.size} bytes"
    yield "report", adapter.report
    for name, value in evidence.figures.items():
        yield name, figure_text(value)


def _origin(adapter: AdapterEntry) -> str:
    return adapter.job or "a compaction"


def _reached(milestone: Milestone) -> str:
    by = "" if milestone.release is None else f", by release {milestone.release}"
    return f"{milestone.name}{by}"
