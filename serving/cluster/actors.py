"""Ray actors by name: detached, restarted for ever, found again by a second deploy."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray

NAMESPACE = "lethe"
FREE_S = 10.0
"""How long the name of an actor that was killed is waited for."""
RETRY_S = 0.1


def start_actor(cls: type, name: str, *arguments: Any, concurrency: int, **keywords: Any) -> Any:
    """The handle of the actor `name`: the one that runs already, or a new one of `cls`.

    It is detached, Ray restarts it for ever, and it takes `concurrency` calls at once. Every actor
    finds its state in the ledger, so a restart loses nothing.
    """
    return _actor(cls, name, concurrency, found=True).remote(*arguments, **keywords)


def replace_actor(cls: type, name: str, *arguments: Any, concurrency: int, **keywords: Any) -> Any:
    """As `start_actor`, but an actor that runs already is killed first."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, NAMESPACE))
    deadline = time.monotonic() + FREE_S
    while True:
        try:
            return _actor(cls, name, concurrency, found=False).remote(*arguments, **keywords)
        except ValueError:  # the name of the one that was killed is free in a moment
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


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
