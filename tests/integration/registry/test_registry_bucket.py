"""The `lethe` commands on a registry in a bucket: a real S3 API, settings from the environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serving.cli.main import app
from tests.ports import free_port

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto, the S3 server of these tests, is not installed")

Lethe = Callable[..., Result]
URL = "s3://bucket/copies/registry"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    bucket = urllib.request.Request(f"{url}/bucket", method="PUT", data=b"")
    while True:
        try:
            urllib.request.urlopen(bucket).close()
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield url
    server.kill()
    server.wait(30)


@pytest.fixture
def golden(project_root: Path) -> Path:
    return project_root / "tests/unit/registry/golden/v1"


@pytest.fixture
def lethe(tmp_path: Path, golden: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Lethe:
    for name, value in {
        "LETHE_HOME": str(tmp_path / "home"),
        "AWS_ENDPOINT": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object) -> Result:
        trust = ["--trust", str(golden / "trust.json")]
        return CliRunner().invoke(app, [*map(str, arguments), *trust])

    return run


def test_a_registry_goes_into_a_bucket_and_comes_out_the_same(
    lethe: Lethe, golden: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    assert lethe("export", first, "--registry", golden / "registry").exit_code == 0
    into = lethe("import", first, "--registry", URL)
    assert into.exit_code == 0, into.output
    found = json.loads(lethe("verify", "--registry", URL, "--json").stdout)
    assert found["sound"]
    assert found["seq"] == 21
    assert len(lethe("log", "--registry", URL).stdout.splitlines()) == 21
    assert lethe("gc", "--registry", URL).exit_code == 0
    assert lethe("export", second, "--registry", URL).exit_code == 0
    assert second.read_bytes() == first.read_bytes()


def test_a_bucket_that_is_not_there_is_a_plain_error(lethe: Lethe) -> None:
    result = lethe("verify", "--registry", "s3://elsewhere/registry")
    assert result.exit_code == 1
    assert "no such bucket" in result.stderr
    assert result.stderr.count("\n") == 1
