"""Starts HAProxy on Ray's configuration, after making it listen only where it should.

By Ray's configuration HAProxy shows its statistics and metrics on every address, on fixed ports and
without a password, and sends a line about each request to UDP port 514. No setting of Ray changes
that, but one names the program that Ray starts as HAProxy. This script is that program: it rewrites
those lines and then becomes HAProxy, with the process id that Ray knows. It does not run a
configuration that it does not know, which another release of Ray may write.

It runs as a script, without this package: `haproxy_start.py HAPROXY HOST [HAProxy's arguments]`.
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
"""The sections on whose ports clients send requests."""
CLOSED = {"frontend prometheus": "prometheus.sock", "listen stats": "stats.sock"}
"""The sections that get a socket instead of a port, and its name beside the configuration."""
UNAVAILABLE = """HTTP/1.1 503 Service Unavailable\r
Content-Type: application/problem+json\r
Cache-Control: no-store\r
Retry-After: 1\r
Connection: close\r
\r
{"type": "about:blank", "title": "Service Unavailable", "status": 503, \
"detail": "No replica answered.", "advice": "Ask again in a moment."}
"""
"""The answer to a request that no replica took."""
_PR_SET_PDEATHSIG = 1
"""From Linux's `prctl.h`."""


class UnfitError(Exception):
    """The configuration cannot be run; the message says why."""


def narrowed(text: str, *, host: str, folder: Path) -> str:
    """Ray's configuration `text`, changed as follows.

    HAProxy takes requests on `host` alone. Statistics and metrics are on sockets in `folder`. No
    line is logged about a request. When no replica answers, the client gets our `UNAVAILABLE`.
    A request is sent to a replica only when all of it has arrived.
    Raises `UnfitError` when `text` listens anywhere else, or lacks a section that is changed here.
    """
    lines, section, known = [], "", set()
    for line in text.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        words = line.split()
        if line == "defaults":
            known.add(section)
            # When a replica dies, HAProxy can send only a complete request to another one.
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
    """Where `section` listens instead of at `ray_s`, the address in Ray's text."""
    if section in CLOSED:
        return f"unix@{folder / CLOSED[section]} mode 600"
    port = re.fullmatch(r".*:(\d+)", ray_s)
    if section not in OPEN or port is None:
        raise UnfitError(f"`bind {ray_s}` in {section!r} is not known here")
    return f"{host}:{port[1]}"


def end_with_parent() -> None:
    """Let Linux end this process, and HAProxy, which it becomes, when the parent ends. Otherwise
    HAProxy would keep the port when Ray's manager is killed."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before `prctl`
            sys.exit("HAProxy is not started: nobody is left who asked for it")


def main(arguments: Sequence[str]) -> None:
    """Become HAProxy; ends with a message when the configuration is not to be run."""
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
