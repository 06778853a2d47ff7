"""The operator API's liveness, and the metrics page from the monitor, without asking a replica."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError

from serving.api.routes.access import AtDesk
from serving.control.client import ControlClient
from serving.monitoring.client import AsyncMonitorClient

router = APIRouter(tags=["probes"])

FIGURES_S = 2.0


@router.get("/healthz")
async def healthz() -> dict[str, Any]:
    """The listener answers."""
    return {"status": "ok"}


@router.get("/metrics")
async def metrics(desk: AtDesk) -> Response:
    """Every replica's metrics in Prometheus' text format, at most about a second old."""
    return await metrics_page(desk.control, desk.monitor)


async def metrics_page(control: ControlClient, monitor: AsyncMonitorClient) -> Response:
    """The monitor's page with control's figures. If control is away, its rows are left out."""
    try:
        figures = await asyncio.wait_for(control.figures(), FIGURES_S)
    except (RayError, TimeoutError):
        figures = None
    return Response(await monitor.page(figures), media_type=CONTENT_TYPE_LATEST)
