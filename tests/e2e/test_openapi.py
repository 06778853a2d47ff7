"""Schemathesis makes up requests from both OpenAPI documents: none ends in a 500."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server

EXAMPLES = 8


@pytest.fixture(scope="module")
def running(make_server: Callable[..., Server]) -> Iterator[Server]:
    # Schemathesis suspends this server, and forgets the class that an example names.
    server = make_server("replicas = 1\n").start()
    yield server
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["inference", "operators"])
def test_no_request_that_the_document_allows_or_forbids_is_an_error_of_ours(
    running: Server, listener: str, tmp_path: Path
) -> None:
    url = running.url if listener == "inference" else running.operator_url
    command = [
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
        *("run", f"{url}/openapi.json", "--checks", "not_a_server_error"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
        *("--continue-on-failure", "--no-color", "--seed", "1", "--request-timeout", "30"),
        *("-H", f"Authorization: Bearer {running.operator_token}"),
    ]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    # It tried every operation and found no error.
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\b", ran.stdout), ran.stdout[-2000:]
    assert re.search(r"([1-9]\d*) generated, .*\bpassed", ran.stdout), ran.stdout[-2000:]
