"""The state that all threads of this process share: kept before Ray starts, put back afterwards.

`ray.init` sets environment variables (`RAY_AUTH_MODE`, `RAY_USAGE_STATS_ENABLED`,
`PYTHONBREAKPOINT`), a handler for SIGTERM and the level of its logger, and leaves all of them as
they are when it stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a server."""


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with `values` inside the block. Afterwards it is what it was before, whoever
    changed it meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextlib.contextmanager
def signal_handlers() -> Iterator[None]:
    """The handlers of `SIGNALS` are put back after the block. In another thread than the main one,
    where nobody can set a handler, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, so Python can't set it again
                signal.signal(number, handler)


@contextlib.contextmanager
def log_levels(*names: str) -> Iterator[None]:
    """The levels of the loggers `names` are put back after the block."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
