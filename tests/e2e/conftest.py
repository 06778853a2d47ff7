"""Starts a real `lethe serve` for tests over HTTP, and finds, kills and restarts its processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.config.home import Home, token
from tests.ports import free_port

START_S = 300.0
LETHE = [sys.executable, "-m", "serving.cli"]
# A short training, for tests that don't judge how well a class is forgotten.
QUICK = "[forget.train]\nselect_steps = 10\nrefit_steps = 60\ncopies = 1\n"


class Server:
    """One `lethe serve` in a home of its own."""

    def __init__(self, home: Path, toml: str = "") -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.operator_port = free_port()
        self.operator_url = f"http://127.0.0.1:{self.operator_port}"
        self.config = home / "lethe.toml"
        self.config.write_text(
            f"home = '{home}'\nport = {self.port}\noperator.port = {self.operator_port}\n{toml}"
        )
        self.log = home / "serve.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
        return {**own, "LETHE_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    def start(self) -> Server:
        self._starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*LETHE, "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        # "serving on" is printed when all replicas serve; the first one answers earlier.
        while self.log.read_text().count("serving on") < self._starts:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"lethe serve did not start:\n{self.log.read_text()}")
            time.sleep(0.2)
        return self

    @property
    def process_of_start(self) -> subprocess.Popen[bytes]:
        """The process of `lethe serve` itself."""
        assert self._process is not None
        return self._process

    def stop(self) -> int:
        """Stop the server with SIGTERM; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """Kill all processes of the server at once, as a power cut would."""
        assert self._process is not None
        self.end_all()
        self._process.wait(timeout=30)

    def end_all(self) -> None:
        for pid in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, title: str) -> list[int]:
        """Ids of the server's processes whose title begins with `title`.

        They are found by LETHE_HOME in their environment.
        """
        mark = f"LETHE_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if not entry.name.isdigit() or mark not in (entry / "environ").read_bytes().split(
                    b"\0"
                ):
                    continue
                if (entry / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def process(self, title: str) -> int:
        (pid,) = self.processes(title)
        return pid

    def client(self) -> Client:
        return Client(self.operator_url, self.operator_token)

    @property
    def operator_token(self) -> str:
        return token(Home(self.home, self.home / "registry"), "operator")

    @property
    def auditor_token(self) -> str:
        return token(Home(self.home, self.home / "registry"), "auditor")

    def lethe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the `lethe` command against this server."""
        return subprocess.run(
            [*LETHE, *arguments, "--config", str(self.config)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture(scope="session")
def make_server(
    tmp_path_factory: pytest.TempPathFactory, digits_backbones: Path
) -> Iterator[Callable[..., Server]]:
    """A function that makes servers of the digits default. All are killed at the end."""
    made: list[Server] = []

    def make(toml: str = "", *, quick: bool = True) -> Server:
        home = tmp_path_factory.mktemp("home")
        shutil.copytree(digits_backbones, home / "backbones")
        if made and (measured := Home(made[0].home, "").engines).is_dir():
            shutil.copytree(measured, Home(home, "").engines)  # the first server measured them
        made.append(Server(home, toml + QUICK if quick else toml))
        return made[-1]

    yield make
    for server in made:
        server.end_all()


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server]) -> Iterator[Server]:
    """A running server that the tests of one module share."""
    running = make_server().start()
    yield running
    assert running.stop() == 0
