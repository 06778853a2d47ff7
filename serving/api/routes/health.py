"""Liveness, readiness and the metrics page of a replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from serving.api.inference_protocol.asking import check_ready
from serving.api.routes.answering import Replica
from serving.api.routes.operator_health import metrics_page
from serving.control.client import ControlClient
from serving.monitoring.client import AsyncMonitorClient

router = APIRouter(tags=["probes"])


@dataclass(frozen=True)
class Sources:
    """Where the metrics page comes from."""

    control: ControlClient
    monitor: AsyncMonitorClient


def sources_of(request: Request) -> Sources:
    """The sources that this process's application was built with."""
    sources: Sources = request.app.state.sources
    return sources


@router.get("/healthz")
async def healthz(replica: Replica) -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok", "replica": replica.name}


@router.get("/readyz")
async def readyz(replica: Replica) -> dict[str, Any]:
    """This replica holds a lease, so it can prove that it serves the current release."""
    release = check_ready(replica)
    return {"status": "ready", "replica": replica.name, "release": release}


@router.get("/metrics")
async def metrics(replica: Replica, sources: Annotated[Sources, Depends(sources_of)]) -> Response:
    """Every replica's metrics in Prometheus' text format. Without control, its rows are missing."""
    snapshot = replica.snapshot()
    if snapshot is not None:
        await sources.monitor.push(replica.name, snapshot)
    return await metrics_page(sources.control, sources.monitor)
