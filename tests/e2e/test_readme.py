"""The operator's commands work as the README prints them; each fails with one line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.traffic import held_out
from tests.e2e.conftest import Server


@pytest.fixture(scope="module")
def running(make_server: Callable[..., Server]) -> Iterator[Server]:
    server = make_server().start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A held-out seven as scan.png, in the working directory."""
    path = tmp_path / "scan.png"
    path.write_bytes(held_out(open_image_set("digits"), ["7"])[0][1])
    monkeypatch.chdir(tmp_path)
    return path


def operator_commands(readme: str) -> list[list[str]]:
    block = re.search(r"<!-- operator:.*?```sh\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def test_the_operators_commands_do_what_the_readme_says(
    running: Server, project_root: Path, scan: Path
) -> None:
    commands = operator_commands((project_root / "README.md").read_text())
    assert [c[0] for c in commands] == ["predict", "forget", "status", "releases", "rollback"]
    said = {}
    for command in commands:
        result = running.lethe(*command)
        assert result.returncode == 0, (command, result.stderr)
        said[command[0]] = result.stdout
    assert "7 " in said["predict"]
    assert "masked on 2 replicas" in said["forget"]
    assert "done: release 2 has forgotten 7" in said["forget"]
    assert "Acc_f 0.0%" in said["forget"]
    assert "forgotten by the weights: 7" in said["status"]
    assert "adapter" in said["releases"]
    assert "still masked: 7" in said["rollback"]

    # The same commands with --json, now that the class is masked.
    answer = json.loads(running.lethe("predict", str(scan), "--json").stdout)[0]
    assert "7" not in [p["label"] for p in answer["predictions"]]
    assert answer["release"] == 3
    assert json.loads(running.lethe("status", "--json").stdout)["masked_only"] == ["7"]
    rows = json.loads(running.lethe("releases", "--json").stdout)
    assert [r["kind"] for r in rows] == ["bare", "guard", "adapter", "rollback"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["forget", "eleven"], "no class 'eleven'"),
        (["rollback", "99"], "no release 99"),
        (["predict", "absent.png"], "can't read absent.png"),
        (["predict", "lethe.toml"], "not an image"),
        (["status", "--url", "http://127.0.0.1:9"], "is `lethe serve` running?"),
        (["serve"], "can't listen"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    running: Server, scan: Path, command: list[str], words: str
) -> None:
    shutil.copy(running.config, scan.parent / "lethe.toml")
    result = running.lethe(*command)
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_token_that_others_can_read_is_refused(running: Server) -> None:
    path = running.home / "tokens" / "operator"
    path.chmod(0o644)
    try:
        result = running.lethe("status")
    finally:
        path.chmod(0o600)
    assert result.returncode == 1
    assert "chmod 600" in result.stderr


def test_keys_and_tokens_are_their_owners_alone(running: Server) -> None:
    private = [*(running.home / "tokens").iterdir(), *(running.home / "keys").glob("*.pem")]
    assert len(private) >= 5
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
