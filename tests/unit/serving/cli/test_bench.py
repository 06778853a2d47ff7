"""What `lethe bench forgetting` prints after a user's mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.cli.main import app


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "digits", "--setting", "4x20"], "needs 82 classes"),
        (["--data", "digits", "--setting", "many"], "unknown setting 'many'"),
        (["--data", "digits", "--setting", "2x2", "--methods", "nonesuch"], "method 'nonesuch'"),
        (["--data", "digits", "--setting", "2x2", "--seeds", "one"], "found 'one'"),
        (["--data", "digits", "--setting", "2x2", "--recipe", "none"], "unknown recipe 'none'"),
        (["--data", "digits"], "--setting is missing"),
        (["--setting", "2x2"], "--data is missing"),
        (["--data", "nowhere", "--setting", "2x2"], "nowhere"),
        (["--paper", "none.toml"], "none.toml can't be read"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, options: list[str], words: str
) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    ended = CliRunner().invoke(
        app, ["bench", "forgetting", *options, "--work", str(work), "--out", str(results)]
    )
    assert ended.exit_code == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("lethe: ")
    assert words in line
    assert not work.exists()
    assert not results.exists()


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from serving.cli.main import app; "
        "r = CliRunner().invoke(app, ['bench', 'forgetting', '--help']); "
        "print(r.exit_code, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["0", "False"]
