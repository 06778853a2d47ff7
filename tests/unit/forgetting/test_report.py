from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from forgetting.measure import Share, h_mean
from forgetting.report import GateConfig, GateResult, Report, dumps, judge, to_json, to_markdown

GOOD = Report(
    method="gs_lora",
    backbone="sha256:ab",
    data_digest="sha256:cd",
    seed=1,
    acc_r_before=Share(290, 300),
    acc_r_previous=Share(290, 300),
    acc_r_after=Share(289, 300),
    acc_f_before=Share(36, 36),
    acc_f_after=Share(0, 36),
    acc_o_before=Share(35, 36),
    acc_o_after=Share(0, 36),
    by_subject={"subject-1": Share(0, 36), "subject-2": Share(0, 36)},
    dump=Share(12, 36),
    dump_before=Share(11, 36),
    groups_kept=2,
    groups_total=6,
    adapter_bytes=63_000,
    seconds=8.0,
    steps=80,
    images={"forget_train": 100, "retain_train": 160},
)


def _failed(report: Report) -> list[str]:
    return [gate.name for gate in judge(report, GateConfig()) if not gate.passed]


def test_good_task_passes_every_gate() -> None:
    gates = judge(GOOD, GateConfig())
    names = ["acc_f", "worst_class", "acc_o", "acc_r_drop", "acc_r_total_drop", "dump_share"]
    assert [gate.name for gate in gates] == names
    assert all(gate.passed and gate.advice == "" for gate in gates)


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("acc_f", lambda r: replace(r, acc_f_after=Share(5, 36))),
        ("acc_o", lambda r: replace(r, acc_o_after=Share(5, 36))),
        ("worst_class", lambda r: replace(r, by_subject={"a": Share(0, 9), "b": Share(5, 9)})),
        ("acc_r_drop", lambda r: replace(r, acc_r_after=Share(286, 300))),
        (
            "acc_r_total_drop",
            lambda r: replace(r, acc_r_previous=Share(281, 300), acc_r_after=Share(280, 300)),
        ),
        ("dump_share", lambda r: replace(r, dump=Share(30, 36))),
        ("acc_f", lambda r: replace(r, acc_f_after=Share(0, 0))),
        ("acc_r_drop", lambda r: replace(r, acc_r_after=Share(0, 0))),
    ],
)
def test_each_gate_fails_on_its_own_fault(gate: str, change: Callable[[Report], Report]) -> None:
    report = change(GOOD)
    assert gate in _failed(report)
    assert all(g.advice for g in judge(report, GateConfig()) if not g.passed)


def test_one_leaked_image_among_few_is_no_rate_but_two_are() -> None:
    assert "acc_f" not in _failed(replace(GOOD, acc_f_after=Share(1, 36)))
    assert "acc_f" in _failed(replace(GOOD, acc_f_after=Share(2, 36)))
    assert "acc_f" in _failed(replace(GOOD, acc_f_after=Share(1, 3)))


def test_loss_of_a_single_image_is_always_forgiven() -> None:
    few = replace(
        GOOD,
        acc_r_before=Share(30, 30),
        acc_r_previous=Share(30, 30),
        acc_r_after=Share(29, 30),
    )
    assert "acc_r_drop" not in _failed(few)
    assert "acc_r_drop" in _failed(replace(few, acc_r_after=Share(28, 30)))


def test_gain_of_an_earlier_task_may_be_given_back_but_not_more() -> None:
    gained = replace(GOOD, acc_r_previous=Share(298, 300), acc_r_after=Share(290, 300))
    assert _failed(gained) == []
    assert "acc_r_drop" in _failed(replace(gained, acc_r_after=Share(286, 300)))


def test_dump_share_is_not_judged_on_a_handful_of_images() -> None:
    few = replace(GOOD, dump=Share(3, 3), dump_before=Share(1, 3))
    assert "dump_share" not in [gate.name for gate in judge(few, GateConfig())]


def test_h_and_drop_follow_the_papers() -> None:
    assert GOOD.drop_f == 1.0
    assert GOOD.h == pytest.approx(h_mean(289 / 300, 1.0))


def test_worst_subject_is_the_most_recognised() -> None:
    report = replace(GOOD, by_subject={"a": Share(0, 9), "b": Share(2, 9), "c": Share(1, 9)})
    assert report.worst_subject == ("b", Share(2, 9))


def test_json_holds_every_share_with_its_interval_and_the_verdict() -> None:
    gates = judge(GOOD, GateConfig())
    plain = json.loads(dumps(GOOD, gates))
    assert plain == json.loads(json.dumps(to_json(GOOD, gates)))
    assert plain["acc_r_after"]["hits"] == 289
    low, high = GOOD.acc_r_after.interval
    assert (plain["acc_r_after"]["low"], plain["acc_r_after"]["high"]) == (low, high)
    assert plain["passed"] is True
    assert len(plain["gates"]) == len(gates)


def test_first_task_has_no_earlier_classes_to_report() -> None:
    first = replace(GOOD, acc_o_before=None, acc_o_after=None)
    gates = judge(first, GateConfig())
    assert "acc_o" not in [gate.name for gate in gates]
    assert json.loads(dumps(first, gates))["acc_o_after"] is None
    assert "forgotten earlier" not in to_markdown(first, gates)


def test_card_names_verdict_limit_and_advice() -> None:
    gate = GateResult("acc_f", False, 0.2, 0.01, "give more forget images")
    card = to_markdown(GOOD, [gate])
    assert card.startswith("# Forget report: refused")
    assert "| acc_f | 0.2000 | 0.0100 | give more forget images |" in card
    assert "| retained | 300 |" in card
