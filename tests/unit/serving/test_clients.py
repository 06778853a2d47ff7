"""Every typed client calls its actor as the actor is written: a method or an argument of an actor
that is renamed, moved or given another type fails here, and not in a running server."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from serving.api.client import OperatorApiClient
from serving.api.operator_api import OperatorApi
from serving.control.client import BlockingControlClient, ControlClient
from serving.control.control import Control
from serving.control.messages import RollbackRequest
from serving.coordination.client import CoordinatorClient
from serving.coordination.coordinator import Coordinator
from serving.coordination.messages import Author
from serving.monitoring.client import AsyncMonitorClient, MonitorClient, WatchClient
from serving.monitoring.monitor import Monitor
from serving.monitoring.reactions import Remark, Rollback
from serving.monitoring.watch import Watch
from serving.replica.recognizer import Recognizer
from serving.training.client import TrainerClient
from serving.training.messages import TrainJob
from serving.training.trainer import Trainer

ACTORS: dict[type, type] = {
    CoordinatorClient: Coordinator,
    ControlClient: Control,
    BlockingControlClient: Control,
    MonitorClient: Monitor,
    AsyncMonitorClient: Monitor,
    WatchClient: Watch,
    TrainerClient: Trainer,
    OperatorApiClient: OperatorApi,
}
TRANSLATED = {
    (BlockingControlClient, "roll_back"),
    (BlockingControlClient, "remark"),
    (TrainerClient, "train"),
}
"""Methods that are more than the actor's: what they ask is tested one by one."""
WAITING = "timeout"
"""How long a client waits, which the actor isn't told."""
AUTHOR = Author("ops", "a test", "request-1")


def public(cls: type) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(cls, inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_")}


def methods() -> Iterator[tuple[type, str]]:
    for client in ACTORS:
        yield from ((client, name) for name in public(client) if (client, name) not in TRANSLATED)


def typed_parameters(method: Callable[..., Any]) -> list[tuple[str, object, object]]:
    """(name, kind, type) of each, less the client's own. Defaults are the actor's affair."""
    hints = get_type_hints(method)
    return [
        (name, parameter.kind, hints[name])
        for name, parameter in inspect.signature(method).parameters.items()
        if name not in ("self", WAITING)
    ]


class Recorder:
    """A handle that answers nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: object) -> Awaitable[None]:
                self.asked.append((method, arguments))
                return _Answered()

        return Method


class _Answered:
    def __await__(self) -> Iterator[Any]:
        yield from ()


def asked(
    client: type, call: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, tuple[object, ...]]:
    """What reaches the actor when `call` uses the client: a method and its arguments."""
    actor = Recorder()
    monkeypatch.setattr("ray.get", lambda answer, timeout=None: None)
    answer = call(client(actor))
    if inspect.iscoroutine(answer):
        asyncio.run(answer)
    (only,) = actor.asked
    return only


@pytest.mark.parametrize(("client", "name"), [*methods()])
def test_a_clients_method_has_the_parameters_of_its_actors(client: type, name: str) -> None:
    actor = ACTORS[client]
    assert name in public(actor), f"{actor.__name__} has no {name}"
    own, its = public(client)[name], public(actor)[name]
    assert typed_parameters(own) == typed_parameters(its)
    assert get_type_hints(own)["return"] == get_type_hints(its)["return"]


@pytest.mark.parametrize(("client", "name"), [*methods()])
def test_a_clients_method_asks_the_method_of_its_name_with_each_argument_in_its_place(
    client: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = public(client)[name]
    given = {each: object() for each, *_ in typed_parameters(method)}
    waiting = {WAITING: 1.0} if WAITING in inspect.signature(method).parameters else {}
    said, arguments = asked(client, lambda c: method(c, **given, **waiting), monkeypatch)
    assert said == name
    taken = inspect.signature(public(ACTORS[client])[name]).bind(None, *arguments).arguments
    del taken["self"]
    assert taken == given


def test_a_monitors_rollback_is_controls_with_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wish = Rollback(to=3, instead_of=5, reason="drift", request_id="request-1")
    said, arguments = asked(
        BlockingControlClient, lambda client: client.roll_back(wish, AUTHOR), monkeypatch
    )
    _types_fit(Control, said, arguments)
    assert (said, arguments) == ("rollback", (RollbackRequest(to=3, instead_of=5), AUTHOR))


def test_a_monitors_remark_is_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    said, arguments = asked(
        BlockingControlClient,
        lambda client: client.remark(Remark("a leak", 1, "request-1"), AUTHOR),
        monkeypatch,
    )
    _types_fit(Control, said, arguments)
    assert (said, arguments) == ("remark", ("a leak", AUTHOR))


def test_a_training_is_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Recorder()
    monkeypatch.setattr("ray.wait", lambda calls, timeout: (calls, []))
    monkeypatch.setattr("ray.get", lambda answer, timeout=None: "the outcome")
    task = TrainJob("job-1", ("zoe",), (), (), {"zoe": "subject"}, (), ())
    trained = TrainerClient(actor).train(task, cancelled=lambda: False, note=lambda _: None)
    assert trained == "the outcome"
    ((said, arguments),) = actor.asked
    _types_fit(Trainer, said, arguments)
    assert (said, arguments) == ("train", (task,))


def _types_fit(actor: type, name: str, arguments: tuple[object, ...]) -> None:
    declared = [hint for _, _, hint in typed_parameters(public(actor)[name])]
    assert [type(argument) for argument in arguments] == declared


@pytest.mark.parametrize("actor", sorted(set(ACTORS.values()), key=lambda actor: actor.__name__))
def test_every_public_method_of_an_actor_is_called_by_a_client(actor: type) -> None:
    """What no client calls is dead, or called around the clients."""
    called = {name for client, its in ACTORS.items() if its is actor for name in public(client)}
    assert set(public(actor)) - called == set()


def test_every_client_of_an_actor_is_checked_here(project_root: Path) -> None:
    defined = {
        node.name
        for path in (project_root / "serving").rglob("client.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "_actor" in ast.unparse(node)
    }
    assert defined == {client.__name__ for client in ACTORS}


def test_the_application_starts_every_actor_with_the_arguments_of_its_constructor(
    project_root: Path,
) -> None:
    """Ray would say so only at a start."""
    tree = ast.parse((project_root / "serving" / "app.py").read_text())
    started: dict[str, ast.Call] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("start_actor", "replace_actor"):
            started[ast.unparse(node.args[0])] = node
            node.args = node.args[2:]  # less the class and the name
        elif name == "deployment.bind":
            started["Recognizer"] = node
    classes = {cls.__name__: cls for cls in (*ACTORS.values(), Recognizer)}
    assert set(started) == set(classes)
    for name, call in started.items():
        keywords = {str(each.arg): None for each in call.keywords if each.arg != "concurrency"}
        inspect.signature(classes[name]).bind(*call.args, **keywords)
