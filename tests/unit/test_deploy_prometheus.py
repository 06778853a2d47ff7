"""Prometheus rules, dashboards and runbook agree with promtool and with the metric table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.cli.main import app as cli
from serving.config.settings import Settings
from serving.monitoring.messages import ControlFigures, ProbeSnapshot, Snapshot
from serving.monitoring.metrics import TABLE, Metrics, Source
from serving.monitoring.monitor import Monitor
from serving.monitoring.tally import Targets

FIGURES = ControlFigures(
    pending=1,
    oldest_pending=5.0,
    seq=9,
    active=2,
    accepted=3,
    done=1,
    refused=1,
    read_at=7.0,
    suspended=False,
    under_erasure=2,
    forgotten=1,
    families=[],
)
TARGET_LABELS = {"job", "instance"}
"""Labels that Prometheus itself adds to every series of a scrape."""
ANNOTATIONS = {"summary", "description", "runbook_url"}


@pytest.fixture(scope="session")
def deploy(project_root: Path) -> Path:
    return project_root / "deploy"


@pytest.fixture(scope="session")
def promtool(project_root: Path) -> str:
    unpacked = project_root / ".venv" / "prometheus" / "usr" / "bin" / "promtool"
    found = shutil.which("promtool") or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        reason = "promtool is neither on the PATH nor unpacked by `make promtool`"
        if os.environ.get("LETHE_REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"{reason}, and LETHE_REQUIRE_PROMTOOL=1")
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def rules(deploy: Path) -> list[dict[str, Any]]:
    """Every recording rule and alerting rule."""
    parsed = yaml.safe_load((deploy / "prometheus" / "rules" / "lethe.yml").read_text())
    return [rule for group in parsed["groups"] for rule in group["rules"]]


@pytest.fixture(scope="session")
def alerts(rules: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


@pytest.fixture(scope="session")
def dashboards(deploy: Path) -> list[dict[str, Any]]:
    """Every dashboard, by file name."""
    files = sorted((deploy / "grafana" / "dashboards").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="session")
def panels(dashboards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every panel of every dashboard."""
    return [panel for dashboard in dashboards for panel in dashboard["panels"]]


@pytest.fixture(scope="session")
def runbook(project_root: Path) -> str:
    return (project_root / "docs" / "runbook.md").read_text()


def run(promtool: str, *arguments: str | Path, stdin: str | None = None) -> None:
    done = subprocess.run(
        [promtool, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- what promtool says


def test_promtool_accepts_the_rules_and_the_scrape_configuration(
    promtool: str, deploy: Path
) -> None:
    run(promtool, "check", "rules", deploy / "prometheus" / "rules" / "lethe.yml")
    run(promtool, "check", "config", deploy / "prometheus" / "prometheus.yml")
    run(promtool, "check", "config", deploy / "prometheus" / "ray.yml")


def test_alerts_fire_and_stay_silent_as_their_tests_say(promtool: str, deploy: Path) -> None:
    run(promtool, "test", "rules", deploy / "prometheus" / "tests" / "lethe_test.yml")


def counted(source: Source) -> Metrics:
    """The metrics of a process after each counter and histogram was used once."""
    metrics = Metrics(source)
    for row in TABLE:
        labels = ["x"] * len(row.labels)
        if row.source == source and row.kind == "counter":
            metrics.count(row.name, *labels)
        if row.source == source and row.kind == "histogram":
            metrics.observe(row.name, 1.0, *labels)
    return metrics


def test_promtool_finds_nothing_to_say_about_the_metrics_page(
    promtool: str, tmp_path: Path
) -> None:
    replica = counted("replica")
    monitor = Monitor(tmp_path / "evidence.json")
    targets = Targets(leak=0.02, drift=0.05)
    snapshot = Snapshot(replica.families(), 0.0, 2, "s", targets, {}, expected=2)
    monitor.push("a", snapshot)
    monitor.push("b", snapshot)
    monitor.push_probes("p", ProbeSnapshot(counted("watch").families(), 0.0, {}))
    page = monitor.page(replace(FIGURES, families=counted("trainer").families())).decode()
    assert all(f"\n{row.name}" in page for row in TABLE)
    run(promtool, "check", "metrics", stdin=page)


def test_every_expression_of_the_dashboards_parses(
    promtool: str, dashboards: list[dict[str, Any]], tmp_path: Path
) -> None:
    records = [
        {"record": f"dashboard:expression:{number}", "expr": without_variables(expression)}
        for number, expression in enumerate(expressions_of(dashboards))
    ]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    run(promtool, "check", "rules", path)


# -- names and labels, against the table


def expressions_of(dashboards: list[dict[str, Any]]) -> list[str]:
    found = []
    for dashboard in dashboards:
        found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        found += [a["expr"] for a in dashboard["annotations"]["list"] if "expr" in a]
    return found


def without_variables(expression: str) -> str:
    replaced = expression.replace("$__rate_interval", "5m").replace("$job", "lethe")
    assert "$" not in replaced, f"a variable that this test doesn't know: {expression}"
    return replaced


_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()\s*(?:\{([^}]*)\})?")
_OPERATORS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring"}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """(name, labels in the selector) of every series selector in a PromQL expression."""
    plain = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", without_strings(expression)))
    for name, matchers in _SELECTOR.findall(plain):
        if name not in _OPERATORS:
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))


def grouping_labels(expression: str) -> set[str]:
    groups = _GROUPING.findall(without_strings(expression))
    return {label.strip() for group in groups for label in group.split(",")}


def without_strings(expression: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)


def labels_by_series(rules: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Series name -> labels, for the series of the metric table and of recording rules."""
    series: dict[str, set[str]] = {
        rule["record"]: grouping_labels(rule["expr"]) for rule in rules if "record" in rule
    }
    for row in TABLE:
        labels = {*row.labels, *TARGET_LABELS} | ({"replica"} if row.source == "replica" else set())
        if row.kind == "histogram":
            series[f"{row.name}_bucket"] = labels | {"le"}
            series[f"{row.name}_sum"] = series[f"{row.name}_count"] = labels
        else:
            series[row.name] = labels
    return series


def test_selectors_are_read_out_of_an_expression() -> None:
    expression = (
        'sum by (a, le) (rate(x_total{b="by (c)", d!~"}"}[5m])) / on (e) y:z:rate5m '
        "> 0.5 and absent(w_sum offset 15m)"
    )
    assert dict(selectors(expression)) == {
        "x_total": {"b", "d"},
        "y:z:rate5m": set(),
        "w_sum": set(),
    }
    assert grouping_labels(expression) == {"a", "le", "e"}


def test_every_name_and_label_in_rules_and_dashboards_exists(
    rules: list[dict[str, Any]], dashboards: list[dict[str, Any]]
) -> None:
    known = labels_by_series(rules)
    used = [rule["expr"] for rule in rules] + expressions_of(dashboards)
    for expression in used:
        found = dict(selectors(expression))
        assert found, expression
        for name, labels in found.items():
            assert name in known, f"{name} is neither in the table nor recorded: {expression}"
            assert labels <= known[name], f"{name} has labels {known[name]}: {expression}"
        assert grouping_labels(expression) <= set().union(*(known[name] for name in found))


def test_every_recorded_series_is_used(
    rules: list[dict[str, Any]], dashboards: list[dict[str, Any]]
) -> None:
    used = " ".join([rule["expr"] for rule in rules] + expressions_of(dashboards))
    assert [r["record"] for r in rules if "record" in r and r["record"] not in used] == []


def test_the_laptops_scrape_target_is_where_lethe_serves_by_default(deploy: Path) -> None:
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    default = Settings.model_construct()
    assert scrape["static_configs"] == [{"targets": [f"{default.host}:{default.port}"]}]
    assert scrape["metrics_path"] == "/metrics"


# -- alerts and the runbook


def test_every_alert_says_what_how_bad_and_where_to_read_on(
    alerts: dict[str, dict[str, Any]], runbook: str
) -> None:
    for name, alert in alerts.items():
        assert set(alert["annotations"]) == ANNOTATIONS, name
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket"), name
        section = runbook.partition(f"\n## {name}\n")[2].partition("\n## ")[0].lstrip()
        assert section.startswith(f"*{alert['labels']['severity']}.* **Means:**"), name
        assert "**Look at:**" in section, name
        assert "**Do:**" in section, name


def test_the_runbook_names_only_alerts_panels_and_commands_that_exist(
    alerts: dict[str, dict[str, Any]], dashboards: list[dict[str, Any]], runbook: str
) -> None:
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == list(alerts)
    prose = " ".join(runbook.split())
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]*)\*(?!\*)", prose))
    titles = {board["title"] for board in dashboards}
    assert named <= titles | {panel["title"] for board in dashboards for panel in board["panels"]}
    commands = {
        command.callback.__name__ for command in cli.registered_commands if command.callback
    }
    asked = set(re.findall(r"`lethe (\w+)", prose))
    assert {"serve", "forget", "status", "releases", "rollback", "predict"} <= asked <= commands


def test_every_alert_is_tested_once_firing_and_once_silent(
    alerts: dict[str, dict[str, Any]], deploy: Path
) -> None:
    tests = yaml.safe_load((deploy / "prometheus" / "tests" / "lethe_test.yml").read_text())
    cases = [case for test in tests["tests"] for case in test.get("alert_rule_test", [])]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fired == silent == set(alerts)


# -- the dashboard


def test_every_panel_has_title_description_unit_and_the_chosen_data_source(
    dashboards: list[dict[str, Any]],
) -> None:
    titles = [panel["title"] for board in dashboards for panel in board["panels"]]
    assert len(set(titles)) == len(titles)
    for dashboard in dashboards:
        panels = dashboard["panels"]
        assert 0 < len(panels) <= 12
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            for part in (panel, *panel["targets"]):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)
            for target in panel["targets"]:
                assert 'job="$job"' in target["expr"], "several installations may share one"


def test_the_dashboards_can_be_provisioned_again_and_again(
    dashboards: list[dict[str, Any]], deploy: Path
) -> None:
    assert {dashboard["uid"] for dashboard in dashboards} == {"lethe", "lethe-leaks"}
    for dashboard in dashboards:
        assert dashboard["id"] is None
        assert "version" not in dashboard
        kept = {key: dashboard[key] for key in ("schemaVersion", "editable", "refresh", "tags")}
        assert kept == {
            "schemaVersion": 39,
            "editable": False,
            "refresh": "30s",
            "tags": ["lethe"],
        }
        variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
        assert variables == {"datasource": "datasource", "job": "query"}
    provisioning = deploy / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((provisioning / "dashboards" / "lethe.yaml").read_text())
    assert [provider["type"] for provider in providers["providers"]] == ["file"]


@pytest.mark.parametrize(
    ("title", "alert"),
    [("Leak evidence", "ForgottenClassRecognised"), ("Drift evidence", "CollateralDrift")],
)
def test_an_evidence_panel_draws_its_line_where_the_alert_fires(
    title: str, alert: str, panels: list[dict[str, Any]], alerts: dict[str, dict[str, Any]]
) -> None:
    (panel,) = [panel for panel in panels if panel["title"] == title]
    limit = float(alerts[alert]["expr"].rpartition(">=")[2])
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in steps] == [None, limit]
    assert panel["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] != "off"
