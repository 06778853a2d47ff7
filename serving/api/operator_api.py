"""The operator API's actor: an HTTP listener for operators' commands and the console.

It has a process of its own and talks to control and the monitor, never to a replica. So neither a
frozen replica nor a flood of predictions delays a command. It keeps no state: Ray restarts it
without limit, and a start with other settings replaces it.
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
    """The application: every route for operators, and the console."""
    api = FastAPI(
        title="Lethe, for operators",
        summary="Commands and status for those who run the server.",
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
    """Runs as a threaded Ray actor. A thread of its own listens."""

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
        """Why it doesn't listen; None as soon as it does. Waits `patience` seconds at most."""
        return None if self._listening.wait(patience) else self._problem

    def _run(self) -> None:
        """Listen; after a failure, try again. The process that this one replaces may still hold the
        port."""
        # By hand, not with tenacity: `problem` reports each failure in the meantime.
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
