"""Ports for the servers that tests start."""

from __future__ import annotations

import itertools
import os
import socket

# Between the ports of Ray's workers (10002 to 19999) and those of Serve's replicas (30000 and up),
# and below what Linux gives to whoever asks for any port (32768 and up): nobody takes one between
# this look and the server's start.
FIRST, WORKERS, EACH = 20_000, 5, 2_000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
# Two runs of the tests at once begin at different places.
_NEXT = itertools.count(os.getpid() * 7)


def free_port() -> int:
    """A port on which nobody listens, and which no other worker of this run is given.

    Raises OSError when none is left.
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
