"""The figures of a report, read without knowing what measured them.

To this package a report is just a blob. If it is a JSON object, its plain values and its shares
({"value", "n", "low", "high", ...}) are shown, and the rest is left out.
"""

import json

from registry.errors import NotFoundError
from registry.log.ledger import Ledger
from registry.schema import Json

_SHARE = ("value", "low", "high", "hits", "n")


def report_figures(ledger: Ledger, digest: str) -> dict[str, Json]:
    """The plain values and shares of the report blob `digest`; empty if it isn't a JSON object
    or is no longer there. Raises: IntegrityError (its bytes changed), StoreError."""
    try:
        report = json.loads(ledger.get_blob(digest))
    except (NotFoundError, ValueError):
        return {}
    if not isinstance(report, dict):
        return {}
    figures = {name: _figure(value) for name, value in report.items()}
    return {name: value for name, value in figures.items() if value is not None}


def figure_text(value: Json) -> str:
    """A figure for people: a share as per cent with its interval and count."""
    if not isinstance(value, dict):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    share = value.get("value")
    text = f"{share:.1%}" if isinstance(share, int | float) else str(share)
    match value.get("low"), value.get("high"):
        case (int() | float() as low, int() | float() as high):
            text += f" [{low:.1%}, {high:.1%}]"
    return f"{text} of {value['n']}" if "n" in value else text


def _figure(value: Json) -> Json:
    """A plain value, a share without anything that is not a number, or None."""
    if isinstance(value, dict) and "value" in value:
        return {name: value[name] for name in _SHARE if name in value}
    return value if isinstance(value, bool | int | float | str) else None
