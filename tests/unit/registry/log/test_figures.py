"""Report figures: what is read from a blob whose format this package doesn't know."""

import json

import pytest

from registry.log.figures import figure_text, report_figures
from registry.log.ledger import Ledger

SHARE = {"hits": 1, "n": 8, "value": 0.125, "low": 0.02, "high": 0.47}


def test_plain_values_and_shares_are_figures_and_nothing_else_is(ledger: Ledger) -> None:
    report = {"h": 0.9, "passed": True, "acc_f": SHARE, "acc_o": None, "by_subject": {"a": SHARE}}
    digest = ledger.put_blob(json.dumps(report).encode())
    assert report_figures(ledger, digest) == {"h": 0.9, "passed": True, "acc_f": SHARE}


def test_a_share_is_shown_without_the_name_of_what_it_is_of(ledger: Ledger) -> None:
    digest = ledger.put_blob(json.dumps({"worst": {"subject": "alice", **SHARE}}).encode())
    assert report_figures(ledger, digest) == {"worst": SHARE}


@pytest.mark.parametrize("blob", [b"", b"[1]", b"\xff", b"no JSON"])
def test_a_report_that_is_no_json_object_has_no_figures(ledger: Ledger, blob: bytes) -> None:
    assert report_figures(ledger, ledger.put_blob(blob)) == {}


def test_figures_are_written_for_people() -> None:
    assert figure_text(SHARE) == "12.5% [2.0%, 47.0%] of 8"
    assert figure_text(0.98765) == "0.9877"
    assert figure_text(True) == "True"
