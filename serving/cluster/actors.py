"""Named Ray actors: detached, restarted without limit, found again by a second deploy."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

NAMESPACE = "lethe"
FREE_S = 10.0
"""How long to wait until Ray has freed the name of a killed actor."""
RETRY_S = 0.1


def start_actor(cls: type, name: str, *arguments: Any, concurrency: int, **keywords: Any) -> Any:
    """The handle of the actor `name`: of the one that runs already, or of a new one of `cls`.

    A new actor is detached, Ray restarts it without limit, and it takes `concurrency` calls at
    once. An actor reads its state from the ledger, so a restart loses nothing.
    """
    return _actor(cls, name, concurrency, found=True).remote(*arguments, **keywords)


def replace_actor(cls: type, name: str, *arguments: Any, concurrency: int, **keywords: Any) -> Any:
    """As `start_actor`, but an actor that runs already is killed first.

    Raises `ray.exceptions.ActorAlreadyExistsError` when its name does not get free in `FREE_S`.
    """
    with contextlib.suppress(ValueError):  # no actor has this name
        ray.kill(ray.get_actor(name, NAMESPACE))
    until_free = Retrying(
        retry=retry_if_exception_type(ActorAlreadyExistsError),
        stop=stop_after_delay(FREE_S),
        wait=wait_fixed(RETRY_S),
        reraise=True,
    )
    create = _actor(cls, name, concurrency, found=False).remote
    return until_free(create, *arguments, **keywords)


def _actor(cls: type, name: str, concurrency: int, *, found: bool) -> Any:
    return ray.remote(cls).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=found,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=concurrency,
    )
