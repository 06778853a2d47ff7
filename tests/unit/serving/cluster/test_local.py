"""A start that is refused: it says why, and changes nothing of the process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from serving.cluster.local import (
    StartError,
    check_ports,
    interrupted,
    quiet_variables,
    running,
)
from serving.cluster.process_state import signal_handlers
from serving.cluster.ray_private import LOGGER_OF_RAY, LOGGER_OF_SERVE, UNEXPORTED, token_file
from serving.config.settings import Settings
from serving.config.sources import load_settings
from tests.ports import free_port

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOGGERS = (LOGGER_OF_RAY, LOGGER_OF_SERVE)


def settings_with(ports: dict[str, int]) -> Settings:
    return load_settings(
        port=ports["port"], operator={"port": ports["operator"]}, grpc={"port": ports["grpc"]}
    )


@pytest.fixture
def ports() -> dict[str, int]:
    """A free port for each of the server's."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("port", "operator", "grpc"):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found[name] = int(probe.getsockname()[1])
    return found


def test_free_ports_are_accepted(ports: dict[str, int]) -> None:
    check_ports(settings_with(ports))


@pytest.mark.parametrize(
    ("taken", "advice"),
    [("port", "another --port"), ("operator", "operator.port"), ("grpc", "grpc.port")],
)
def test_a_port_that_is_taken_is_named_with_the_setting_to_change(
    ports: dict[str, int], taken: str, advice: str
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[taken]))
        listener.listen()
        with pytest.raises(StartError, match=f":{ports[taken]} .*already in use.*{advice}"):
            check_ports(settings_with(ports))
    check_ports(settings_with(ports))


def test_a_grpc_port_is_checked_on_every_address(ports: dict[str, int]) -> None:
    """Serve opens it on all of them, so one listener on any address is in the way."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", ports["grpc"]))
        listener.listen()
        with pytest.raises(StartError, match=r"grpc\.port"):
            check_ports(settings_with(ports))


def test_without_a_grpc_port_none_is_checked(ports: dict[str, int]) -> None:
    check_ports(load_settings(port=ports["port"], operator={"port": ports["operator"]}))


def test_a_host_that_is_not_of_this_machine_is_named(ports: dict[str, int]) -> None:
    settings = load_settings(host="192.0.2.7", port=ports["port"])
    with pytest.raises(StartError, match=rf"can't listen on 192\.0\.2\.7:{ports['port']}"):
        check_ports(settings)


def state() -> dict[str, Any]:
    """What a start may change in the process."""
    return {
        "environment": dict(os.environ),
        "handlers": {number: signal.getsignal(number) for number in SIGNALS},
        "levels": {name: logging.getLogger(name).level for name in LOGGERS},
    }


@pytest.fixture
def ray_fails(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """`ray.init` raises before it starts a process, but after it has changed the environment."""
    (home / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(home / "file"))


def start(settings: Settings) -> None:
    def never() -> Any:
        raise AssertionError("there is no Ray to build it on")

    with running(settings, never, servicers=()):
        raise AssertionError("it runs")


@pytest.mark.parametrize("ingress", ["python", "haproxy"])
def test_a_ray_that_cannot_start_is_one_sentence_and_changes_nothing(
    ray_fails: None, ingress: str
) -> None:
    settings = load_settings(port=free_port(), ingress=ingress)
    before = state()
    with pytest.raises(StartError, match=r"^Ray did not start: .*Not a directory"):
        start(settings)
    assert state() == before
    assert not ray.is_initialized()


def test_the_token_that_a_start_makes_is_private_although_the_start_fails(
    ray_fails: None, home: Path
) -> None:
    with pytest.raises(StartError):
        start(load_settings(port=free_port()))
    assert token_file().is_relative_to(home)
    assert token_file().read_text()
    assert token_file().stat().st_mode & 0o777 == 0o600


def test_ray_is_told_to_work_less_unless_its_metrics_are_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in UNEXPORTED:
        monkeypatch.delenv(name, raising=False)
    assert quiet_variables(load_settings()) == UNEXPORTED
    assert quiet_variables(load_settings(monitor={"ray_metrics": True})) == {}


def test_a_variable_that_is_set_already_keeps_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    set_already, *others = UNEXPORTED
    for name in others:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(set_already, "1")
    assert sorted(quiet_variables(load_settings())) == sorted(others)


@pytest.fixture
def kept_handlers() -> Iterator[None]:
    with signal_handlers():
        yield


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_event_and_ends_nothing(
    kept_handlers: None, number: signal.Signals
) -> None:
    ended = interrupted()
    assert not ended.is_set()
    signal.raise_signal(number)
    assert ended.is_set()


def test_a_thread_cannot_ask_for_interruptions() -> None:
    problems: list[str] = []

    def ask() -> None:
        try:
            interrupted()
        except ValueError as error:
            problems.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(problems) == 1
