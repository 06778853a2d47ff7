"""An audit has the whole history of one erasure, and nothing about other subjects."""

import json
import re
import shutil
from pathlib import Path

import pytest

from registry.audit.erasure import Audit, audit, audit_to_json
from registry.audit.page import audit_html, audit_text
from registry.errors import NotFoundError
from registry.log.ledger import Ledger
from registry.publish.declarations import restore_subjects
from registry.publish.jobs import request_forget
from registry.signing.keys import Trust
from registry.store.directory import DirectoryStore
from tests.unit.registry.registry_acts import BACKBONE, Acts, subject

GOLDEN = Path(__file__).parents[1] / "golden"
SEVEN = "b6a7330ddb2e8590631e25e6281611ec"


@pytest.fixture
def of_seven(tmp_path: Path) -> Audit:
    shutil.copytree(GOLDEN / "v1" / "registry", tmp_path / "registry")
    trust = Trust.load(GOLDEN / "v1" / "trust.json")
    return audit(Ledger(DirectoryStore(tmp_path / "registry"), trust), SEVEN)


def test_the_audit_of_the_golden_registry_reads_as_it_did(of_seven: Audit) -> None:
    text = json.dumps(audit_to_json(of_seven), indent=1, sort_keys=True) + "\n"
    assert text == (GOLDEN / "audit" / "audit.json").read_text()
    assert audit_text(of_seven) == (GOLDEN / "audit" / "audit.txt").read_text()
    assert audit_html(of_seven) == (GOLDEN / "audit" / "audit.html").read_text()


def test_the_page_refers_to_nothing_outside_itself(of_seven: Audit) -> None:
    page = audit_html(of_seven)
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", page)


def test_the_page_escapes_whatever_a_caller_wrote(acts: Acts) -> None:
    hostile = "<script>alert('it's & \"')</script>"
    request_forget(
        acts.ledger,
        acts.signers["operator"],
        subjects=[subject(1)],
        backbone=BACKBONE,
        actor=hostile,
        reason=f"reason {hostile}",
        request_id=f"request {hostile}",
    )
    acts.refuse("job-1", stage="gates")
    page = audit_html(audit(acts.ledger, subject(1)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;it&#39;s &amp; &#34;&#39;)&lt;/script&gt;") == 3


def milestones(acts: Acts, number: int) -> list[tuple[str, int | None]]:
    found = audit(acts.ledger, subject(number))
    return [(milestone.name, milestone.release) for milestone in found.milestones]


def standing(acts: Acts, number: int = 1) -> str:
    return audit(acts.ledger, subject(number)).standing


def test_an_audit_follows_an_erasure_to_its_end(acts: Acts) -> None:
    job = acts.forget(1)
    assert standing(acts) == "requested"
    release = acts.publish("guard", job.id).number
    acts.activate(release)
    assert standing(acts) == "requested"
    acts.confirm(release)
    assert standing(acts) == "masked"
    acts.train(job.id)
    acts.serve(acts.publish("adapter", job.id).number)
    assert standing(acts) == "forgotten"
    assert milestones(acts, 1) == [
        ("requested", None),
        ("masked", 1),
        ("masked on every replica", 1),
        ("forgotten by the weights", 2),
        ("forgotten by the weights on every replica", 2),
    ]


def test_a_rollback_shows_in_the_audit_of_whom_it_concerns(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    release = acts.roll_back(2).number
    acts.activate(release)
    assert standing(acts, 2) == "masked"
    acts.confirm(release)
    assert milestones(acts, 2)[-1] == ("no longer forgotten by the weights", 5)
    types = [entry.record.type for entry in audit(acts.ledger, subject(2)).entries]
    assert types[-3:] == ["rolled_back", "activated", "confirmed"]
    assert standing(acts, 1) == "forgotten"
    assert all(name != "no longer forgotten by the weights" for name, _ in milestones(acts, 1))


def test_an_audit_has_only_what_concerns_its_subject(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    acts.note("nothing about anyone")
    acts.hold(2)
    one, two = (audit(acts.ledger, subject(number)) for number in (1, 2))
    assert [entry.record.seq for entry in one.entries] == list(range(1, 9))
    assert [entry.record.seq for entry in two.entries] == [*range(9, 17), 18]
    assert [evidence.adapter.job for evidence in two.evidence] == ["job-2"]


def test_a_restore_and_a_second_request_are_told_one_after_the_other(acts: Acts) -> None:
    acts.erase(1)
    acts.restore(1)
    assert standing(acts) == "restored"
    acts.serve(acts.roll_back(0).number)
    acts.bury(1, objects=("images",), delete=lambda: None)
    assert milestones(acts, 1)[5:] == [
        ("restored", None),
        ("no longer forgotten by the weights", 3),
        ("no longer masked", 3),
    ]
    job = acts.forget(1)
    acts.serve(acts.publish("guard", job.id).number)
    assert [name for name, _ in milestones(acts, 1)[8:]] == [
        "requested",
        "masked",
        "masked on every replica",
    ]
    types = [entry.record.type for entry in audit(acts.ledger, subject(1)).entries]
    assert {"restored", "tombstone", "rolled_back"} < set(types)


def test_a_seal_is_the_last_milestone(acts: Acts) -> None:
    acts.erase(1)
    acts.seal(2, f"sha256:{'c' * 64}")
    assert standing(acts) == "sealed"
    assert milestones(acts, 1)[-1] == ("sealed", None)


def test_texts_of_people_are_no_markup_on_the_page(acts: Acts) -> None:
    acts.forget(1)
    acts.refuse("job-1")
    page = audit_html(audit(acts.ledger, subject(1)))
    assert "retained classes lost 3 points" in page
    origin = {"actor": "<b>ops", "request_id": "r-<i>", "reason": "<script>x</script>"}
    restore_subjects(acts.ledger, acts.signers["operator"], subjects=[subject(1)], **origin)
    page = audit_html(audit(acts.ledger, subject(1)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;ops" in page


def test_a_subject_that_no_record_names_has_no_audit(acts: Acts) -> None:
    acts.erase(1)
    with pytest.raises(NotFoundError, match="no record up to 8 requests"):
        audit(acts.ledger, subject(2))


def test_a_compaction_belongs_to_the_life_of_everyone_whose_erasure_it_carries(acts: Acts) -> None:
    acts.erase(1)
    acts.erase(2)
    folds = acts.state.active_release.adapters
    adapter = acts.compact().id
    release = acts.serve(acts.publish_compaction(adapter).number).number
    acts.erase(3)
    for number in (1, 2):
        found = audit(acts.ledger, subject(number))
        assert found.standing == "forgotten"
        assert [entry.record.type for entry in found.entries][-4:] == [
            "compacted",
            "published",
            "activated",
            "confirmed",
        ]
        assert [evidence.adapter.id for evidence in found.evidence] == [folds[number - 1], adapter]
        text = audit_text(found)
        assert f"Adapter {adapter} (a compaction)" in text
        assert f"stands for: {folds[0]}, {folds[1]}" in text
        assert f"release {release} (compaction), 1 adapters, 2 masked" in text
    assert audit_to_json(found)["adapters"][1]["folds"] == [*folds]  # type: ignore[index, call-overload]
    assert "compacted" not in [e.record.type for e in audit(acts.ledger, subject(3)).entries]
