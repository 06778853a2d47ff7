"""Liveness, readiness and the metrics page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from serving.routes.answering import Replica, suspension
from serving.routes.operator_probes import metrics_page
from serving.routes.problems import problem

router = APIRouter(tags=["probes"])


@router.get("/healthz")
async def healthz(replica: Replica) -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok", "replica": replica.name}


@router.get("/readyz", response_model=None)
async def readyz(replica: Replica) -> dict[str, Any] | Response:
    """This replica can prove that it is current, so it serves."""
    if replica.member.suspended:
        return suspension()
    ready = replica.slot.active
    if ready is None or replica.member.lease_left <= 0:
        return problem(503, "This replica can't prove that it is current, so it doesn't serve.")
    return {"status": "ready", "replica": replica.name, "release": ready.number}


@router.get("/metrics")
async def metrics(replica: Replica) -> Response:
    """Every replica's numbers in Prometheus' text format. A missing control leaves its rows out."""
    snapshot = replica.snapshot()
    if snapshot is not None:
        await replica.monitor.push.remote(replica.name, snapshot)
    return await metrics_page(replica.control, replica.monitor)
