"""An audit for people: as plain text, and as one HTML page to print, with no other resource."""

from collections.abc import Iterator
from html import escape

from registry.audit.erasure import Audit, Evidence
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
_STYLE = """
body { font: 11pt/1.4 Georgia, serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.6em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25em .6em .25em 0;
  border-bottom: 1px solid #ccc; }
code { font: .85em monospace; overflow-wrap: anywhere; }
tr { break-inside: avoid; }
@page { margin: 2cm; }
""".strip()


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
        lines.append(f"  {at}  {milestone.name}{_by_release(milestone.release)}")
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
    return "\n".join(_page(found)) + "\n"


def _page(found: Audit) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f"<title>Erasure of {escape(found.subject)}</title>"
    yield f"<style>\n{_STYLE}\n</style></head><body>"
    yield "<h1>Record of an erasure</h1>"
    yield f"<p><strong>{escape(STANDINGS[found.standing])}</strong></p>"
    yield from _table(
        [
            ["Subject", _code(found.subject)],
            ["Backbone", _code(found.backbone)],
            ["Ledger", f"{found.seq} records, head {_code(found.head)}"],
        ]
    )
    yield "<h2>Milestones</h2>"
    yield from _table(
        [
            [
                encode_time(milestone.entry.record.at),
                escape(f"{milestone.name}{_by_release(milestone.release)}"),
                f"record {milestone.entry.record.seq}",
            ]
            for milestone in found.milestones
        ]
    )
    for evidence in found.evidence:
        yield f"<h2>Adapter {_code(evidence.adapter.id)}</h2>"
        yield from _table([[escape(name), _code(text)] for name, text in _facts(evidence)])
    yield "<h2>Records</h2>"
    yield from _table([_record_row(entry) for entry in found.entries])
    yield (
        "<p>Made from the signed, hash-chained ledger. Each digest is that of the whole stored "
        "record; <code>lethe verify</code> checks them all on any copy.</p>"
    )
    yield "</body></html>"


def _record_row(entry: Entry) -> list[str]:
    record = entry.record
    sentences = "<br>".join(map(escape, _sentences(entry)))
    proof = f"{_code(entry.digest)}<br>signed with {_code(entry.key_id)}"
    who = f"{encode_time(record.at)}<br>{escape(record.actor)}"
    return [str(record.seq), who, f"{escape(record.type)}<br>{sentences}<br>{proof}"]


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


def _by_release(release: int | None) -> str:
    return "" if release is None else f", by release {release}"


def _table(rows: list[list[str]]) -> Iterator[str]:
    yield "<table>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</table>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
