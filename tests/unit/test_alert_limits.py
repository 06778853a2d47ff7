"""Numbers that stand in the code and in `deploy/` or the docs: each is the same in all places.

`ALERTS` lists every number of every alert. A name there is a constant of the code, which the rule
has to follow; what stands there as a number is the rule's own, and nothing in the code uses it.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import leak_detection
from serving.config.settings import LeaseSettings, MonitorSettings, Settings
from serving.monitoring import evidence, thresholds
from serving.monitoring.metrics import TABLE
from serving.monitoring.monitor import PROBED_S, STALE_S
from serving.monitoring.posture import BLIND_AFTER_S
from serving.monitoring.ray_export import AGAIN_S
from serving.monitoring.thresholds import PROOF, SUSPICION
from serving.replica.member import STUCK_LEASES
from serving.replica.recognizer import PUSH_S

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR
SECONDS = {"second": 1.0, "minute": MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY}
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "five": 5, "ten": 10}


@dataclass(frozen=True)
class Numbers:
    """What an alert's rule holds."""

    compared: Mapping[str, float] = field(default_factory=dict)
    """Operator -> the number on its right."""
    held: float = 0.0
    """`for`: seconds that it must last."""
    window: float | None = None
    """Seconds that an increase is counted over."""


ALERTS = {
    "ForgottenClassRecognised": Numbers({">=": PROOF}),
    "LeakSuspected": Numbers({">=": SUSPICION}),
    "CollateralDrift": Numbers({">=": PROOF}),
    "CanaryExposed": Numbers({">": 0}, window=15 * MINUTE),
    "MonitorBlind": Numbers({"==": 1}, held=15 * MINUTE),
    "ShadowEnding": Numbers({">": 0, "<": 7 * DAY}),
    "ProbesFailing": Numbers({">": 0.5, "==": 1}, held=5 * MINUTE, window=15 * MINUTE),
    "ServingSuspended": Numbers({"==": 1}, held=HOUR),
    "AutomaticReaction": Numbers({">": 0}, window=15 * MINUTE),
    "ReplicaBehind": Numbers(held=2 * MINUTE),
    "ReplicaMissing": Numbers(held=2 * MINUTE),
    "ReplicaNotCurrent": Numbers({"<=": 0, "==": 1}, held=MINUTE),
    "ErasureOverdue": Numbers({">": 10 * MINUTE}, held=MINUTE),
    "ControlAbsent": Numbers(held=2 * MINUTE),
    "ShadowDropping": Numbers({">": 0.05}, held=5 * MINUTE),
    "SwapFailing": Numbers({">": 0}, window=15 * MINUTE),
    "MonitorAbsent": Numbers(held=5 * MINUTE),
}
RECORDED = {
    "job:lethe_shadow_drops:ratio_increase15m": Numbers(window=15 * MINUTE),
    "job:lethe_shadow_disagreements:ratio_increase1h": Numbers(window=HOUR),
    "job:lethe_oldest_pending:age_seconds": Numbers({">": 0}),
}
WINDOWS = {"ShadowDropping": RECORDED["job:lethe_shadow_drops:ratio_increase15m"].window}
"""Of alerts whose expression takes a recorded one."""


@pytest.fixture(scope="session")
def deploy(project_root: Path) -> Path:
    return project_root / "deploy"


@pytest.fixture(scope="session")
def rules(deploy: Path) -> dict[str, dict[str, Any]]:
    """Every rule of every file, by its name."""
    files = sorted((deploy / "prometheus" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    found = [rule for group in groups for rule in group["rules"]]
    named = {rule.get("alert") or rule["record"]: rule for rule in found}
    assert len(named) == len(found)
    return named


@pytest.fixture(scope="session")
def panels(deploy: Path) -> dict[str, dict[str, Any]]:
    """Every panel of every dashboard, by its title."""
    files = (deploy / "grafana" / "dashboards").glob("*.json")
    found = [panel for file in files for panel in json.loads(file.read_text())["panels"]]
    return {panel["title"]: panel for panel in found}


@pytest.fixture(scope="session")
def runbook(project_root: Path) -> dict[str, str]:
    """The text below each heading, on one line."""
    parts = re.split(r"^## (\w+)$", (project_root / "docs" / "runbook.md").read_text(), flags=re.M)
    return dict(zip(parts[1::2], (" ".join(part.split()) for part in parts[2::2]), strict=True))


# -- reading rules and prose


def seconds_of(duration: str) -> float:
    """Of a Prometheus duration: `1h30m`."""
    units = {"s": 1.0, "m": MINUTE, "h": HOUR, "d": DAY}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([smhd])", duration))


def numbers_of(rule: Mapping[str, Any]) -> Numbers:
    expression = re.sub(r'"[^"]*"', '""', rule["expr"])
    compared = re.findall(r"(>=|<=|==|>|<)\s*(\d+(?:\.\d+)?(?:\s*\*\s*\d+)*)", expression)
    windows = {seconds_of(window) for window in re.findall(r"\[(\w+)\]", expression)}
    assert len(windows) <= 1
    assert len(dict(compared)) == len(compared)
    return Numbers(
        {operator: math.prod(map(float, number.split("*"))) for operator, number in compared},
        seconds_of(rule.get("for", "0s")),
        next(iter(windows), None),
    )


def durations_in(prose: str) -> set[float]:
    """In seconds: "15 minutes", "an hour"."""
    found = re.findall(rf"\b({'|'.join(COUNTS)}|\d+) ({'|'.join(SECONDS)})s?\b", prose.lower())
    return {(COUNTS.get(count) or int(count)) * SECONDS[unit] for count, unit in found}


def limits_in(prose: str) -> set[float]:
    """What is called proof or the limit: "5 is the limit", "more than 5 %"."""
    found = re.findall(r"([\d.]+)( %)? is (?:proof|the limit)", prose)
    found += re.findall(r"more than ([\d.]+)( %)", prose)
    return {float(number) / (100 if percent else 1) for number, percent in found}


def test_numbers_are_read_out_of_a_rule_and_out_of_prose() -> None:
    rule = {
        "expr": 'increase(x_total{y!="3 > 2"}[15m]) * 2 >= 7 * 86400 unless z == 1.5',
        "for": "1h30m",
    }
    assert numbers_of(rule) == Numbers({">=": 7 * DAY, "==": 1.5}, 1.5 * HOUR, 15 * MINUTE)
    assert durations_in("For 15 minutes, an hour or two Weeks") == {900, 3600, 14 * DAY}
    assert limits_in("3 is proof at 0.001, 5 % is the limit; more than 7 %") == {3, 0.05, 0.07}


# -- rules


def test_every_rule_holds_the_numbers_that_are_listed_here(
    rules: dict[str, dict[str, Any]],
) -> None:
    assert {name: numbers_of(rule) for name, rule in rules.items()} == ALERTS | RECORDED


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_and_the_runbook_say_the_numbers_of_its_rule(
    name: str, rules: dict[str, dict[str, Any]], runbook: dict[str, str]
) -> None:
    numbers = ALERTS[name]
    times = {numbers.held, numbers.window, WINDOWS.get(name), *numbers.compared.values()}
    means, _, _ = runbook[name].partition("**Look at:**")
    for prose in (*rules[name]["annotations"].values(), means):
        assert durations_in(prose) <= times
        assert limits_in(prose) <= set(numbers.compared.values())
        assert set(re.findall(r"proof at ([\d.]+\d)", prose)) <= {f"{10**-PROOF:g}"}


def test_what_is_proof_is_the_same_wherever_it_is_explained(
    project_root: Path, panels: dict[str, dict[str, Any]], runbook: dict[str, str]
) -> None:
    (row,) = [row for row in TABLE if row.name == "lethe_leak_evidence_log10"]
    said = f"{PROOF:g} is proof at {10**-PROOF:g}"
    assert row.help.endswith(f"{said}.")
    assert f"At {PROOF:g} it {said[2:]}" in panels["Leak evidence"]["description"]
    assert f"at {SUSPICION:g} LeakSuspected fires" in panels["Leak evidence"]["description"]
    assert f"At {PROOF:g} CollateralDrift fires" in panels["Drift evidence"]["description"]
    odds = f"At {PROOF:g} the odds of a false alarm, ever, are at most 1 in {10**PROOF:g}"
    assert odds in runbook["ForgottenClassRecognised"]
    monitoring = " ".join((project_root / "docs" / "monitoring.md").read_text().split())
    assert f"*ever* reaches {PROOF:g} " in monitoring
    assert f"is at most {10**-PROOF:g}, however often" in monitoring
    assert f"10^{SUSPICION:g} steps on average until it first reaches {SUSPICION:g};" in monitoring
    assert (leak_detection.PROOF, leak_detection.SUSPICION) == (PROOF, SUSPICION)
    prose = " ".join((leak_detection.__doc__ or "").split())
    assert f"until the evidence reaches {PROOF:g}, where ForgottenClassRecognised" in prose
    assert f"until the detector reaches {SUSPICION:g} (LeakSuspected)" in prose


@pytest.mark.parametrize(
    ("title", "name"),
    [("Release by replica", "ReplicaBehind"), ("Pending forget commands", "ErasureOverdue")],
)
def test_a_panel_says_the_time_of_the_alert_that_it_names(
    title: str, name: str, panels: dict[str, dict[str, Any]]
) -> None:
    description = panels[title]["description"]
    assert name in description
    assert durations_in(description) == {ALERTS[name].compared.get(">", ALERTS[name].held)}


def test_panels_say_the_buckets_and_the_certainty_of_the_code(
    panels: dict[str, dict[str, Any]],
) -> None:
    (row,) = [row for row in TABLE if row.name == "lethe_request_duration_seconds"]
    slowest = f"whose largest bucket is {row.buckets[-1]:g} s"
    assert slowest in panels["Latency of predictions"]["description"]
    error = inspect.signature(evidence.upper_bound).parameters["error"].default
    assert f": {1 - error:.0%}".replace("%", " %") in panels["Leak bound"]["description"]


# -- times of the code that alerts, scrapes and the runbook count on


def test_an_alert_waits_until_a_replica_had_the_time_to_come_back() -> None:
    lease = LeaseSettings()
    assert ALERTS["ReplicaBehind"].held > STUCK_LEASES * lease.seconds
    assert ALERTS["ReplicaNotCurrent"].held > 2 * lease.seconds  # of a coordinator that restarts
    assert ALERTS["ReplicaMissing"].held > STALE_S
    assert ALERTS["MonitorAbsent"].held > STALE_S


def test_every_scrape_sees_new_numbers_of_every_replica_that_lives(deploy: Path) -> None:
    both = [
        yaml.safe_load((deploy / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "ray.yml")
    ]
    assert both[0]["global"] == both[1]["global"]
    every = seconds_of(both[0]["global"]["scrape_interval"])
    assert every >= 5 * PUSH_S
    assert every >= AGAIN_S  # Ray drops a gauge that isn't set again
    assert every <= STALE_S  # a replica that ended is not missed between two scrapes
    assert min(n.held for n in ALERTS.values() if n.held) >= 4 * every
    assert min(n.window for n in (ALERTS | RECORDED).values() if n.window) >= 4 * every


def test_a_cluster_is_scraped_where_rays_exporter_listens_by_default(deploy: Path) -> None:
    (scrape,) = yaml.safe_load((deploy / "prometheus" / "ray.yml").read_text())["scrape_configs"]
    default = Settings.model_construct()
    target = f"{default.host}:{default.monitor.ray_metrics_port}"
    assert scrape["static_configs"] == [{"targets": [target]}]


def test_the_docs_say_when_the_monitor_calls_itself_blind(
    project_root: Path, runbook: dict[str, str]
) -> None:
    assert MonitorSettings().blind_after_hours * HOUR == BLIND_AFTER_S
    for prose in (runbook["MonitorBlind"], (project_root / "docs" / "monitoring.md").read_text()):
        (reason,) = re.findall(r"`no_probes`([^`]*`canary`[^`]*)`no_matches`", prose)
        assert durations_in(" ".join(reason.split())) == {PROBED_S}


def test_the_runbook_says_after_how_many_leases_a_replica_is_replaced(
    runbook: dict[str, str],
) -> None:
    (count,) = re.findall(r"After (\w+) leases Serve replaces it", runbook["ReplicaBehind"])
    assert COUNTS[count] == STUCK_LEASES


def test_no_threshold_is_left_out_here() -> None:
    named = {name for name in vars(thresholds) if name.isupper()}
    assert named == {"PROOF", "SUSPICION"}
