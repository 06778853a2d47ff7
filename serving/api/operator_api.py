"""The operator API and the console: an HTTP listener of its own, in a process of its own.

It talks to control and the monitor and to no replica, so neither a frozen replica nor a flood of
predictions holds up a command. It holds nothing: Ray restarts it for ever, and a start with other
settings replaces it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from serving.api.routes import console, operations, operator_health, problems
from serving.api.routes.access import Desk
from serving.api.routes.body_limit import BodyLimit
from serving.config.home import home_of, token
from serving.config.settings import Settings
from serving.control.client import ControlClient
from serving.monitoring.client import AsyncMonitorClient

log = logging.getLogger(__name__)

ACTOR = "lethe-operator-api"
RETRY_S = 0.5


def build_operator_api(desk: Desk) -> FastAPI:
    """Every route of operators, and the console."""
    api = FastAPI(
        title="Lethe, for operators",
        summary="Commands and questions of whoever runs the server.",
        version="0.1.0",
        responses={"4XX": {"description": "A problem (RFC 9457): what was wrong, what to do."}},
    )
    api.state.desk = desk
    problems.install(api)
    for router in (operations.router, operator_health.router, console.router):
        api.include_router(router)
    api.add_middleware(BodyLimit, limit=desk.settings.limits.body_bytes)
    return api


class OperatorApi:
    """Runs as a threaded Ray actor."""

    def __init__(
        self,
        settings: Settings,
        classes: tuple[str, ...],
        *,
        control: ControlClient,
        monitor: AsyncMonitorClient,
    ) -> None:
        self._address = (settings.operator.host, settings.operator_port)
        desk = Desk(settings, classes, token(home_of(settings), "operator"), control, monitor)
        self._api = build_operator_api(desk)
        self._listening = threading.Event()
        self._problem: str | None = "it has not tried yet"
        threading.Thread(target=self._run, name="listen", daemon=True).start()

    def problem(self, patience: float) -> str | None:
        """Why it doesn't listen; None once it does. Waits `patience` seconds for that."""
        return None if self._listening.wait(patience) else self._problem

    def _run(self) -> None:
        """Listen, for ever: the port may still be held by the process that this one replaces."""
        # By hand: it never ends, and `problem` tells each reason while it waits.
        while True:
            try:
                listener = socket.create_server(self._address, backlog=128)
            except OSError as error:
                self._problem = os.strerror(error.errno) if error.errno else str(error)
                log.warning("can't listen on %s:%d: %s", *self._address, self._problem)
                time.sleep(RETRY_S)
                continue
            with listener:
                self._listening.set()
                config = uvicorn.Config(
                    self._api, log_level="warning", access_log=False, lifespan="off"
                )
                uvicorn.Server(config).run(sockets=[listener])
            self._listening.clear()
            time.sleep(RETRY_S)
