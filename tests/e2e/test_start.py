"""A start on a machine that is too busy for Ray."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import LETHE, Server

GONE_S = 120.0
# Runs in every Python process. Ray gives up when one of its own takes more than 15 s.
SLOW_AGENT = """
import pathlib, sys, time
seen = pathlib.Path({seen!r})
if any(name.endswith("dashboard/agent.py") for name in sys.orig_argv):
    if sum(1 for _ in seen.iterdir()) < {times}:
        (seen / str(time.time_ns())).touch()
        time.sleep(25)
"""


class SlowRay(Server):
    """A server whose Ray fails to start the first `times` times, because of a hook in `folder`."""

    def __init__(self, home: Path, folder: Path, *, times: int) -> None:
        super().__init__(home)
        self.folder = folder
        self.seen = folder / "seen"
        self.seen.mkdir()
        hook = SLOW_AGENT.format(seen=str(self.seen), times=times)
        (folder / "sitecustomize.py").write_text(hook)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PYTHONPATH": str(self.folder)}


@pytest.mark.slow
def test_a_start_that_ray_gives_up_is_tried_again(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = SlowRay(make_server().home, tmp_path, times=1)
    server.start()
    try:
        assert len(list(server.seen.iterdir())) == 1
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        # No process of the first try is left.
        titles = [psutil.Process(pid).name() for pid in server.processes("")]
        assert titles.count("gcs_server") == titles.count("raylet") == 1, titles
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_a_ray_that_never_comes_up_is_one_plain_sentence(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = SlowRay(make_server().home, tmp_path, times=3)
    ended = subprocess.run(
        [*LETHE, "serve", "--config", str(server.config)],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert "Ray did not start in 3 tries" in ended.stderr
    assert "Traceback" not in ended.stderr
    # Ray's agents end when they next look for their node; on a busy machine that took 56 s.
    deadline = time.monotonic() + GONE_S
    while server.processes("") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.processes("") == []
