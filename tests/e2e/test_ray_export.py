"""A real Prometheus reads the metrics of a real server from Ray's own exporter."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import audit, held_out
from serving.monitoring.metrics import TABLE
from tests.e2e.conftest import Server
from tests.e2e.test_prometheus import Prometheus, prometheus_binary
from tests.ports import free_port

__all__ = ["prometheus_binary"]

WAIT_S = 90.0
GONE_S = 45.0
"""Seconds; Ray drops a gauge that isn't set again for about 30 s."""


def ours(port: int) -> dict[str, set[str]]:
    """Series name -> label names, for the metrics of this project that Ray exports."""
    try:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    except httpx.TransportError:
        return {}
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("ray_lethe_"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expected(*, without: set[str]) -> set[str]:
    return {
        f"ray_{row.name}_bucket" if row.kind == "histogram" else f"ray_{row.name}"
        for row in TABLE
        if row.name not in without
    }


@pytest.mark.slow
def test_rays_exporter_has_the_table_and_gauges_that_stay(
    make_server: Callable[..., Server],
    prometheus_binary: str,
    project_root: Path,
    tmp_path: Path,
) -> None:
    port = free_port()
    exported = f"replicas = 1\n[monitor]\nray_metrics = true\nray_metrics_port = {port}\n"
    server = make_server(exported).start()
    audit(server.url, server.auditor_token, held_out(open_image_set("digits"), ["8"]))
    # Events that never happened have no series, since Ray rejects a counter's zero.
    never = {row.name for row in TABLE if row.source in ("trainer", "watch")}
    never |= {row.name for row in TABLE if row.kind == "counter"} - {
        "lethe_requests_total",
        "lethe_images_total",
        "lethe_swaps_total",
    }
    wanted = expected(without=never)
    deadline = time.monotonic() + WAIT_S
    while not wanted <= set(ours(port)):
        assert time.monotonic() < deadline, wanted - set(ours(port))
        time.sleep(1)
    time.sleep(GONE_S)
    found = ours(port)
    assert wanted <= set(found), wanted - set(found)
    assert {"stage", "replica"} <= found["ray_lethe_stage_duration_seconds_bucket"]

    # With the relabelling in `deploy/`, the series are those of the application's own page.
    config = yaml.safe_load((project_root / "deploy" / "prometheus" / "ray.yml").read_text())
    relabelling = config["scrape_configs"][0]["metric_relabel_configs"]
    prometheus = Prometheus(
        prometheus_binary,
        tmp_path,
        deploy=project_root / "deploy",
        target=f"127.0.0.1:{port}",
        relabelling=relabelling,
    )
    try:
        prometheus.wait_until("count(lethe_release) == 1")
        assert prometheus.query('{__name__=~"ray_.+"}') == []
        assert prometheus.value('sum(lethe_requests_total{route="/v1/predict"})') >= 30
        for name in ("lethe_leak_evidence_log10", "lethe_pending_requests"):
            (sample,) = prometheus.query(f'{name}{{source!="canary"}}')
            ours_alone = {"__name__", "job", "instance", "source", "WorkerId"}
            assert set(sample["metric"]) <= ours_alone, sample
    finally:
        prometheus.stop()
    assert server.stop() == 0
