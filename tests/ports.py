"""Ports for the servers that tests start."""

from __future__ import annotations

import itertools
import os
import socket

# These ports are not those of Ray's workers (10002 to 19999), of Serve's replicas (30000 and up) or
# of Linux's automatic choice (32768 and up). So nobody takes one before the server starts.
FIRST, WORKERS, EACH = 20_000, 5, 2_000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
# Two test runs at the same time begin at different ports.
_NEXT = itertools.count(os.getpid() * 7)


def free_port() -> int:
    """A port on which nobody listens, and that no other test worker of this run gets.

    Raises OSError if there is none.
    """
    for _ in range(EACH):
        port = FIRST + EACH * _WORKER + next(_NEXT) % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port in {EACH} from {FIRST + EACH * _WORKER}")
