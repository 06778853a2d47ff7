"""`lethe demo`, as a new user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import LETHE

KEYS = {
    "acc_r_before", "acc_r_after", "acc_f_before", "acc_f_weights", "acc_f_after",
    "acc_o_weights", "acc_o", "h", "groups_kept",
    "groups_total", "adapter_bytes", "train_s", "forget_to_ack_s", "swap_ms", "requests", "failed",
    "stale_after_ack", "releases",
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(
    digits_backbones: Path, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(digits_backbones, home / "backbones")
    return subprocess.run(
        [*LETHE, "demo", "--json"],
        env={**os.environ, "LETHE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_the_demo_ends_by_itself_and_its_last_line_is_the_summary(
    demo: subprocess.CompletedProcess[str],
) -> None:
    assert demo.returncode == 0, demo.stderr
    summary = json.loads(demo.stdout.splitlines()[-1])
    assert set(summary) == KEYS


@pytest.mark.slow
def test_the_demo_shows_what_is_promised(demo: subprocess.CompletedProcess[str]) -> None:
    summary = json.loads(demo.stdout.splitlines()[-1])
    assert summary["acc_r_before"] >= 0.96
    assert summary["acc_r_after"] >= summary["acc_r_before"] - 0.02
    assert summary["acc_f_before"] >= 0.9
    assert summary["acc_f_weights"] <= 0.01
    assert summary["acc_o_weights"] <= 0.01
    assert summary["acc_f_after"] <= 0.01
    assert summary["acc_o"] <= 0.01
    assert summary["groups_kept"] <= summary["groups_total"] - 2
    assert summary["adapter_bytes"] > 1000
    assert summary["requests"] > 1000
    assert (summary["failed"], summary["stale_after_ack"]) == (0, 0)
    # Two guards, two adapters, one rollback.
    assert summary["releases"] == 5
