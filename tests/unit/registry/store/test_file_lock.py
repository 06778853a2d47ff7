"""The lock around a file that is read, changed and replaced."""

import multiprocessing
import os
import signal
import stat
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from registry.store.file_lock import only_writer


def _hold(path: Path, held: Event) -> None:
    with only_writer(path):
        held.set()
        time.sleep(60)


def test_threads_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")

    def add() -> None:
        for _ in range(25):
            with only_writer(path):
                count = int(path.read_text())
                time.sleep(0.0005)
                path.write_text(str(count + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "100"


def test_a_killed_holder_lets_others_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "file", held))
    holder.start()
    assert held.wait(30)
    entered = threading.Event()

    def enter() -> None:
        with only_writer(tmp_path / "file"):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.3)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert entered.wait(10)
    waiting.join()


def test_everybody_may_open_the_lock_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with only_writer(tmp_path / "file"):
            pass
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / ".file.lock").stat().st_mode) == 0o666


def test_no_folder_is_made_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no"), only_writer(tmp_path / "no" / "file"):
        pass
    assert not (tmp_path / "no").exists()
