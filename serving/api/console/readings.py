"""The console's live numbers, for each replica: plain values from the metrics page.

Counters are passed on as they are: the console computes rates from two readings.
"""

from __future__ import annotations

import math
from typing import Any

from serving.monitoring.metrics import OUTCOMES
from serving.monitoring.metrics_page import Look
from serving.monitoring.tally import Counts, Source
from serving.monitoring.thresholds import PROOF, SUSPICION

PREDICT = "/v1/predict"
PROBE_OUTCOMES = ("quiet", "leak", "exposed", "waiting", "failed")
_GAUGES = {
    "release": "lethe_release",
    "lease_s": "lethe_lease_remaining_seconds",
    "groups": "lethe_active_groups",
    "masked": "lethe_guard_size",
    "last_swap": "lethe_last_swap_timestamp_seconds",
}
_COUNTS = {
    "images": "lethe_images_total",
    "in_flight": "lethe_requests_in_flight",
    "samples": "lethe_shadow_samples_total",
    "dropped": "lethe_shadow_drops_total",
}


def watching_view(now: Look) -> dict[str, Any] | None:
    """How leaks are watched for, and why one could not be seen; None without numbers from the
    monitor."""
    posture = now.chosen("lethe_monitor_posture", "posture")
    if posture is None:
        return None
    return {
        "posture": posture,
        "shadow_until": now.gauge("lethe_shadow_until_timestamp_seconds") or None,
        "blind": now.chosen("lethe_monitor_blind", "reason"),
        "canary_classes": int(now.gauge("lethe_canary_classes") or 0),
        "canary_classes_forgotten": int(now.gauge("lethe_canary_classes_forgotten") or 0),
        "last_probe": now.gauge("lethe_last_probe_timestamp_seconds") or None,
        "probes": {
            outcome: now.total("lethe_probes_total", outcome=outcome) for outcome in PROBE_OUTCOMES
        },
    }


def leak_view(now: Look, counts: Counts, *, source: Source = "shadow") -> dict[str, Any] | None:
    """The evidence on leaks from live traffic or probes; None without numbers from the monitor.

    `counts` are those of the active release's stack of adapters from `source`.
    """
    evidence = now.gauge("lethe_leak_evidence_log10", source=source)
    if evidence is None:
        return None
    return {
        "evidence_log10": evidence,
        "proof_log10": PROOF,
        "detector_log10": now.gauge("lethe_leak_detector_log10", source=source),
        "suspicion_log10": SUSPICION,
        "upper_bound": now.gauge("lethe_leak_upper_bound_ratio", source=source),
        "target": now.gauge("lethe_leak_target_ratio"),
        "matches": counts.matches,
        "leaks": counts.leaks,
    }


def drift_view(now: Look, counts: Counts) -> dict[str, Any] | None:
    """The evidence on drift: disagreement with the backbone on retained classes; None without
    numbers from the monitor."""
    evidence = now.gauge("lethe_drift_evidence_log10")
    if evidence is None:
        return None
    return {
        "evidence_log10": evidence,
        "proof_log10": PROOF,
        "target": now.gauge("lethe_drift_target_ratio"),
        "compared": counts.retained,
        "disagreements": counts.disagreements,
    }


def replicas_view(now: Look) -> dict[str, dict[str, Any]]:
    """The numbers of each replica that has reported lately."""
    names = [labels["replica"] for labels, _ in now.samples.get("lethe_release", ())]
    return {name: _replica(now, name) for name in names}


def _replica(now: Look, name: str) -> dict[str, Any]:
    gauges = {field: _one(now, metric, name) for field, metric in _GAUGES.items()}
    counts = {field: now.total(metric, replica=name) for field, metric in _COUNTS.items()}
    requests = "lethe_requests_total"
    return {
        **gauges,
        **counts,
        "predictions": {
            outcome: now.total(requests, replica=name, route=PREDICT, outcome=outcome)
            for outcome in OUTCOMES
        },
        "latency": _buckets(now, name),
    }


def _one(now: Look, metric: str, replica: str) -> float | None:
    found = (v for labels, v in now.samples.get(metric, ()) if labels["replica"] == replica)
    return next(found, None)


def _buckets(now: Look, replica: str) -> list[tuple[float | None, float]]:
    """(upper edge in seconds, number of predictions that took at most that long), in rising order.

    The last edge is None: it has no limit.
    """
    wanted = {"replica": replica, "route": PREDICT}.items()
    found = [
        (float(labels["le"]), count)
        for labels, count in now.samples.get("lethe_request_duration_seconds_bucket", ())
        if wanted <= labels.items()
    ]
    return [(None if math.isinf(edge) else edge, count) for edge, count in sorted(found)]
