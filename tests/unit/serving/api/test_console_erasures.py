"""The console's list of erasures agrees with the audit of each."""

from __future__ import annotations

from registry.audit.erasure import audit
from registry.errors import NotFoundError
from serving.api.console.erasures import erasures_view, standing
from tests.unit.registry.registry_acts import Acts, subject

NAMES = {subject(1): "seven", subject(2): "<script>eight"}


def class_of(known: str) -> str:
    if known not in NAMES:
        raise NotFoundError(f"no subject {known}")
    return NAMES[known]


def agrees_with_audits(acts: Acts) -> list[str]:
    """The standing of every subject, which this compares with the one on its audit card."""
    found = [standing(acts.state, each) for each in sorted(acts.state.subjects)]
    audits = [audit(acts.ledger, each).standing for each in sorted(acts.state.subjects)]
    assert found == audits
    return list(found)


def test_standings_are_those_of_the_audit_at_every_step(acts: Acts) -> None:
    seen = []
    job = acts.forget(1)
    seen += agrees_with_audits(acts)
    guard = acts.publish("guard", job.id).number
    acts.activate(guard)
    seen += agrees_with_audits(acts)
    acts.confirm(guard)
    seen += agrees_with_audits(acts)
    acts.train(job.id)
    adapter = acts.publish("adapter", job.id).number
    acts.activate(adapter)
    seen += agrees_with_audits(acts)
    acts.confirm(adapter)
    seen += agrees_with_audits(acts)
    acts.serve(acts.roll_back(guard).number)
    seen += agrees_with_audits(acts)
    acts.erase(2)
    agrees_with_audits(acts)
    acts.restore(1)
    agrees_with_audits(acts)
    assert seen == ["requested", "requested", "masked", "masked", "forgotten", "masked"]


def test_a_restored_class_is_concealed_until_a_release_shows_it(acts: Acts) -> None:
    acts.erase(1)
    acts.restore(1)
    (row,) = erasures_view(acts.state, class_of=class_of)
    assert (row["standing"], row["concealed"]) == ("restored", True)
    acts.serve(acts.roll_back(0).number)
    (row,) = erasures_view(acts.state, class_of=class_of)
    assert (row["standing"], row["concealed"]) == ("restored", False)


def test_each_subject_has_one_row_by_its_last_request(acts: Acts) -> None:
    first = acts.erase(1)
    acts.hold(1)
    acts.erase(2, 3)
    acts.restore(1)
    again = acts.forget(1)
    rows = erasures_view(acts.state, class_of=class_of)
    assert [row["class"] for row in rows] == ["<script>eight", subject(3), "seven"]
    assert rows[-1]["job"] == again.id != first.id
    assert [row["held"] for row in rows] == [False, False, True]
