"""Starts HAProxy on a configuration that Ray wrote, once it listens where it should and only there.

Ray binds HAProxy's statistics and its metrics page to every address, on fixed ports and without a
password, sends a line about each request to whatever takes UDP on port 514, and has replicas listen
on the address that clients use. Its settings say nothing about that, but they name the program to
run: this one. It rewrites those lines and becomes HAProxy, under the process id that Ray knows. A
configuration that it doesn't know, because another Ray words it differently, is not run.

Runs as a script, without this package: `haproxy_start.py HAPROXY HOST [HAProxy's arguments]`.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

OPEN = ("frontend http_frontend", "frontend grpc_frontend")
"""What clients reach."""
CLOSED = {"frontend prometheus": "prometheus.sock", "listen stats": "stats.sock"}
"""What gets a socket beside the configuration instead of a port."""
UNAVAILABLE = """HTTP/1.1 503 Service Unavailable\r
Content-Type: application/problem+json\r
Cache-Control: no-store\r
Retry-After: 1\r
Connection: close\r
\r
{"type": "about:blank", "title": "Service Unavailable", "status": 503, \
"detail": "No replica answered.", "advice": "Ask again in a moment."}
"""


_PR_SET_PDEATHSIG = 1


class UnfitError(Exception):
    """The configuration can't be run; the message says why."""


def narrowed(text: str, *, host: str, folder: Path) -> str:
    """Ray's configuration `text` with requests taken on `host`, statistics and metrics on sockets
    in `folder`, no lines about requests, our page where no replica answers, and requests that are
    sent on once they are there.

    Raises `UnfitError` for one that listens anywhere else.
    """
    lines, section, known = [], "", set()
    for line in text.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        words = line.split()
        if line == "defaults":
            known.add(section)
            # Only what it has whole can HAProxy send once more, when a replica dies.
            line += "\n    option http-buffer-request"
        elif words[:1] == ["bind"]:
            known.add(section)
            line = (
                f"    bind {_place(words[1], section, host, folder)} {' '.join(words[2:])}".rstrip()
            )
        elif words[:1] == ["log"] and "local0" in words:
            continue
        elif words[:1] == ["errorfile"]:
            line = f"    errorfile {words[1]} {folder / 'unavailable.http'}"
        lines.append(line)
    missing = {*CLOSED, OPEN[0], "defaults"} - known
    if missing:
        raise UnfitError(f"nothing known in {min(missing)!r}: is this another version of Ray?")
    return "\n".join(lines) + "\n"


def _place(ray_s: str, section: str, host: str, folder: Path) -> str:
    if section in CLOSED:
        return f"unix@{folder / CLOSED[section]} mode 600"
    port = re.fullmatch(r".*:(\d+)", ray_s)
    if section not in OPEN or port is None:
        raise UnfitError(f"`bind {ray_s}` in {section!r} is not known here")
    return f"{host}:{port[1]}"


def end_with_parent() -> None:
    """Have this process, and what it becomes, end when the one that started it does: Ray's manager
    that is killed would leave HAProxy on the port."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before that
            sys.exit("HAProxy is not started: nobody is left who asked for it")


def main(arguments: Sequence[str]) -> None:
    binary, host, *rest = arguments
    config = Path(rest[rest.index("-f") + 1])
    (config.parent / "unavailable.http").write_text(UNAVAILABLE, newline="")
    try:
        text = narrowed(config.read_text(), host=host, folder=config.parent)
    except UnfitError as error:
        sys.exit(f"HAProxy is not started: {error}")
    config.write_text(text)
    end_with_parent()
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
