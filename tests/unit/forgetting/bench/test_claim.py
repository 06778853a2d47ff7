from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forgetting.bench.claim import Claimed, claim

# The holder is another process: a process's own lock would prove nothing.
HOLDER = """
import sys, time
from pathlib import Path
from forgetting.bench.claim import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(result: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(result)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_claim_of_another_process_is_respected_and_ends_with_its_death(tmp_path: Path) -> None:
    result = tmp_path / "cell.json"
    process = holder(result)
    try:
        with pytest.raises(Claimed), claim(result):
            pass
        lock = tmp_path / ".cell.json.lock"
        assert int(lock.read_text()) == process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert lock.exists()  # a stale file, which blocks nobody
    with claim(result):
        assert int(lock.read_text()) == os.getpid()
    assert not lock.exists()


def test_claims_on_two_results_do_not_meet(tmp_path: Path) -> None:
    with claim(tmp_path / "a"), claim(tmp_path / "b"):
        assert {p.name for p in tmp_path.iterdir()} == {".a.lock", ".b.lock"}


def test_claim_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "a"):
        _ = 1 / 0
    with claim(tmp_path / "a"):
        pass
