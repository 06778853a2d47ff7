from __future__ import annotations

import json
from dataclasses import replace

import pytest

from forgetting.measure.accuracy import Share, h_mean
from forgetting.report.card import dumps, to_json, to_markdown
from forgetting.report.gates import GateConfig, GateResult, judge
from forgetting.report.leaks import LeakFigure
from tests.unit.forgetting.report.reports import GOOD, LEAKS


def test_h_and_drop_follow_the_papers() -> None:
    assert GOOD.drop_f == 1.0
    assert GOOD.h == pytest.approx(h_mean(289 / 300, 1.0))


def test_worst_subject_is_the_most_recognised() -> None:
    report = replace(
        GOOD, by_subject_weights={"a": Share(0, 9), "b": Share(2, 9), "c": Share(1, 9)}
    )
    assert report.worst_subject == ("b", Share(2, 9))


def test_json_holds_every_share_with_its_interval_and_the_verdict() -> None:
    gates = judge(GOOD, GateConfig())
    plain = json.loads(dumps(GOOD, gates))
    assert plain == json.loads(json.dumps(to_json(GOOD, gates)))
    assert plain["acc_r_after"]["hits"] == 289
    low, high = GOOD.acc_r_after.interval
    assert (plain["acc_r_after"]["low"], plain["acc_r_after"]["high"]) == (low, high)
    assert plain["ece_after"] == 0.035
    assert plain["passed"] is True
    assert len(plain["gates"]) == len(gates)


def test_json_holds_every_leak_with_its_anchors() -> None:
    plain = json.loads(dumps(GOOD, judge(GOOD, GateConfig())))["leaks"]
    assert set(plain["figures"]) == set(LEAKS.figures)
    probe = plain["figures"]["probe_5"]
    assert (probe["after"], probe["before"], probe["chance"], probe["n"]) == (0.5, 0.95, 0.1, 36)
    assert probe["kept"] == pytest.approx(0.4 / 0.85)
    assert probe["low"] == Share(18, 36).interval[0]
    unmeasured = replace(GOOD, leaks=None)
    assert json.loads(dumps(unmeasured, judge(unmeasured, GateConfig())))["leaks"] is None


def test_nothing_is_kept_of_a_class_that_the_backbone_does_not_know() -> None:
    assert LeakFigure(after=0.1, before=0.05, chance=0.1, n=20).kept is None


def test_first_task_has_no_earlier_classes_to_report() -> None:
    first = replace(GOOD, acc_o_before=None, acc_o_after=None)
    gates = judge(first, GateConfig())
    assert json.loads(dumps(first, gates))["acc_o_after"] is None
    assert "forgotten earlier" not in to_markdown(first, gates)


def test_card_names_verdict_limit_and_advice() -> None:
    gate = GateResult("acc_f", False, 0.2, 0.01, "give more forget images")
    card = to_markdown(GOOD, [gate])
    assert card.startswith("# Forget report: refused")
    assert "| acc_f | 0.2000 | 0.0100 | give more forget images |" in card
    assert "| retained | 300 |" in card
    assert "| probe_5 | 36 | 95.0% | 50.0% | 10.0% | 47% |" in card


def test_card_says_what_was_not_judged_and_what_nothing_is_known_of() -> None:
    dark = replace(
        GOOD,
        acc_m_before=Share(0, 0),
        acc_m_after=Share(0, 0),
        unmeasured=3,
        leaks=replace(LEAKS, figures={}, unmeasurable="no forgotten class has two test images"),
    )
    card = to_markdown(dark, judge(dark, GateConfig()))
    assert card.startswith("# Forget report: accepted")
    limit = f"{GateConfig().probe:.4f}"
    assert f"| probe |  | {limit} | not judged: no forgotten class has two test images |" in card
    assert "can't be measured: no forgotten class has two" in card
    assert "nothing is known of 3 retained classes" in card
    assert "| of these without training images | 0 |  | no images |  | no images |" in card
    assert "was not measured." in to_markdown(replace(GOOD, leaks=None), [])


def test_card_fits_one_page() -> None:
    card = to_markdown(GOOD, judge(GOOD, GateConfig()))
    assert len(card.splitlines()) < 80
    assert "| block 2 | 95.0% | 50.0% | 90.0% | 40.0% |" in card
    assert "photos of 10 candidates finds 50% of the 2 forgotten ones" in card
