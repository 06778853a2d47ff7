"""A replica of this process behind its real HTTP application, on a real port."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import uvicorn
from ray import serve

from serving.api.inference_api import FORM_BYTES, build_inference_api
from serving.control.client import ControlClient
from serving.control.control import Control
from serving.monitoring.client import AsyncMonitorClient
from serving.replica.recognizer import Recognizer
from tests.unit.serving.in_process import Process
from tests.unit.serving.small_server import SmallServer, until


@contextlib.contextmanager
def listening(
    server: SmallServer, replica: Recognizer, control: Process[Control] | None = None
) -> Iterator[None]:
    """The replica answers HTTP at the settings' address, as Serve would have it. Only the metrics
    page asks `control`."""
    api = build_inference_api(
        max_body_bytes=server.settings.limits.body_bytes + FORM_BYTES,
        control=ControlClient(None if control is None else control.handle),
        monitor=AsyncMonitorClient(server.monitor.handle),
    )
    listener = uvicorn.Server(
        uvicorn.Config(api, port=server.settings.port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=listener.run, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        context = SimpleNamespace(servable_object=replica)
        patch.setattr(serve, "get_replica_context", lambda: context)
        thread.start()
        until(lambda: listener.started)
        try:
            yield
        finally:
            listener.should_exit = True
            thread.join()
