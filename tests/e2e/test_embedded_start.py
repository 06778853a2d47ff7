"""A server inside another program: when it has ended, the program is as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from serving.app import prepare, running
from serving.cluster import local
from serving.cluster.ray_private import LOGGER_OF_RAY, LOGGER_OF_SERVE, node_log
from serving.config.sources import load_settings
from tests.ports import free_port

TIMEOUT_S = 600.0
PARTS = ("environment", "handlers", "levels")


def state() -> dict[str, Any]:
    """What a start changes in the process."""
    return {
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "levels": [logging.getLogger(name).level for name in (LOGGER_OF_RAY, LOGGER_OF_SERVE)],
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [part for part in PARTS if before[part] != after[part]]


def program(home: str, ingress: str) -> None:
    """Two embedded starts, one of which fails once Ray is up; prints what each changed."""
    settings = load_settings(
        home=home,
        port=free_port(),
        operator={"port": free_port()},
        replicas=1,
        ingress=ingress,
    )
    prepare(settings)
    found: dict[str, Any] = {}
    before = state()

    def fail() -> NoReturn:
        found["changed while it starts"] = changed(before, state())
        raise RuntimeError("no application")

    try:
        with local.running(settings, fail, servicers=()):
            found["said"] = "nothing"
    except local.StartError as error:
        found["said"] = str(error)
    found["changed by a start that failed"] = changed(before, state())

    with running(settings):
        ended = local.interrupted()
        found["status"] = httpx.get(f"{settings.url}/readyz", trust_env=False).status_code
        found["changed while it serves"] = changed(before, state())
        found["log"] = node_log().is_file()
        os.kill(os.getpid(), signal.SIGTERM)
        found["told to end"] = ended.wait(timeout=10)
    found["changed by a server that has ended"] = changed(before, state())
    print(json.dumps(found))


@pytest.mark.parametrize("ingress", ["python", pytest.param("haproxy", marks=pytest.mark.slow)])
def test_a_server_leaves_the_program_as_it_was_also_when_its_start_fails(
    digits_backbones: Path, project_root: Path, tmp_path: Path, ingress: str
) -> None:
    (tmp_path / "backbones").symlink_to(digits_backbones)
    code = "import sys; from tests.e2e.test_embedded_start import program; program(*sys.argv[1:])"
    own = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), ingress],
        cwd=project_root,
        env={**own, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "changed while it starts": list(PARTS),
        "said": "the application did not come up: no application",
        "changed by a start that failed": [],
        "status": 200,
        "changed while it serves": list(PARTS),
        "log": True,
        "told to end": True,
        "changed by a server that has ended": [],
    }
