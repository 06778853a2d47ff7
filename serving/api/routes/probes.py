"""Liveness, readiness and the metrics page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from serving.api.inference_protocol.asking import check_ready
from serving.api.routes.answering import Replica
from serving.api.routes.operator_probes import metrics_page

router = APIRouter(tags=["probes"])


@router.get("/healthz")
async def healthz(replica: Replica) -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok", "replica": replica.name}


@router.get("/readyz")
async def readyz(replica: Replica) -> dict[str, Any]:
    """This replica can prove that it is current, so it serves."""
    release = check_ready(replica)
    return {"status": "ready", "replica": replica.name, "release": release}


@router.get("/metrics")
async def metrics(replica: Replica) -> Response:
    """Every replica's numbers in Prometheus' text format. A missing control leaves its rows out."""
    snapshot = replica.snapshot()
    if snapshot is not None:
        await replica.monitor.push.remote(replica.name, snapshot)
    return await metrics_page(replica.control, replica.monitor)
